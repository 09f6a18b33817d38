"""The runtime process: HTTP, settings, metrics, and keeping to what the control plane wants.

Belongs here: the internal API, probes, metrics and stats, the control loop with its pure parts (``desired``,
``report``), and ``Residency``, which loads artifacts into the cache and the pipeline.
Forbidden here: batching, tensors' arithmetic, eviction policy.
"""
