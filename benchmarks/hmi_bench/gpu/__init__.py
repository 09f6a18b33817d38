"""The runtime on a GPU: agreement with the reference, peers, ten thousand adapters, copies behind compute.

Needs nothing that is not installed: weights are random and words are made up. ``benchmark`` runs all parts.
"""
