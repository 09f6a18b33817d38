"""The artifact store: training publishes to it and runtimes fetch from it, named and checked by digest.

Belongs here: manifests, verification, publishing and fetching over fsspec or through the control plane, and
the local copies on disk. Forbidden here: what is inside the files (tables, layers, adapters read their
own), torch, and pickle.
"""
