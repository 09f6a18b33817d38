"""The adapter cache on three tiers: device slots, host memory, local disk.

Belongs here: budgets, least-recently-used order, pins and use counts as pure indexes (``tiers``), and the
tiers that move bytes by them (``disk``, ``adapter_cache``). Forbidden here: how an adapter is applied, what
a request is, HTTP. A tier never blocks a caller for another caller's load, and never evicts what is in use.
"""
