"""The runtime process: HTTP, settings, metrics, and following the control plane's desired state.

Belongs here: the internal API, probes, metrics and statistics, the control loop with its pure part
(``adapter_states``), and ``AdapterLoader``, which connects artifacts to the cache and the pipeline.
Forbidden here: batching, tensors' arithmetic, eviction policy.
"""
