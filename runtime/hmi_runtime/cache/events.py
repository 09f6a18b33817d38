"""What a cache tells whoever counts: loads, evictions. The server turns these into metrics."""

from enum import StrEnum
from typing import Protocol


class Tier(StrEnum):
    """Where bytes rest, nearest to compute first."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    STORE = "store"


class CacheEvents(Protocol):
    """Receives what happens in the tiers; called from any thread, so it must be quick and thread-safe."""

    def loaded(self, tier: Tier, seconds: float, *, failed: bool) -> None:
        """An adapter was brought to ``tier``, or could not be."""

    def hit(self, tier: Tier) -> None:
        """An adapter was asked for and found in ``tier``."""

    def evicted(self, source: Tier, target: Tier) -> None:
        """An adapter had to leave ``source`` and now rests in ``target``."""


class Unobserved:
    """Counts nothing: for programs that use a cache without metrics."""

    def loaded(self, tier: Tier, seconds: float, *, failed: bool) -> None:
        """Ignore a load."""

    def hit(self, tier: Tier) -> None:
        """Ignore a hit."""

    def evicted(self, source: Tier, target: Tier) -> None:
        """Ignore an eviction."""
