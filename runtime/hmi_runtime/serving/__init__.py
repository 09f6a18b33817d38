"""From requests to results: tokenise, look up, batch, execute.

Belongs here: batch formation (``batching``, pure), tokenising and prefetching (``preparation``), staging, the
engine of a base model with its threads, how they share the cores, and the ``Pipeline`` that connects them.
While batches are computing, the texts of the next ones are tokenised and their adapters are prefetched.
Forbidden here: HTTP, the control plane, files, how bytes are cached or adapters applied.
"""
