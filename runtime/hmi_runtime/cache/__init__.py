"""Adapters and artifacts on three tiers: device slots, host memory, local disk.

Belongs here: budgets, least-recently-used order, pins and use counts as pure indexes (``budget``, ``lru``,
``slots``), and the tiers that move bytes by them (``disk``, ``adapters``).
Forbidden here: how an adapter is applied, what a request is, HTTP. A tier never blocks a caller for another
caller's load, and never moves what somebody uses.
"""

from hmi_runtime.cache.adapters import AdapterCache, AdapterId, Lease, SlotTier, SlotWriter
from hmi_runtime.cache.budget import Budget, OverBudget
from hmi_runtime.cache.disk import DiskTier
from hmi_runtime.cache.events import CacheEvents, Tier, Unobserved
from hmi_runtime.cache.lru import LruIndex
from hmi_runtime.cache.slots import Placement, SlotIndex

__all__ = [
    "AdapterCache",
    "AdapterId",
    "Budget",
    "CacheEvents",
    "DiskTier",
    "Lease",
    "LruIndex",
    "OverBudget",
    "Placement",
    "SlotIndex",
    "SlotTier",
    "SlotWriter",
    "Tier",
    "Unobserved",
]
