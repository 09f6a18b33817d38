"""Churn: a cache that is far too small, adapters that come, change and go, and every answer checked.

Belongs here: models whose answers can be told apart, their history, the changes, clients that compare each
answer with the reference. Forbidden here: timing, and anything of the runtime but its loader and pipeline.
"""
