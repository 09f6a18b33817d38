"""What rests in which tier, for how many tenants, and how often it was found there."""

from dataclasses import dataclass

from hmi_runtime.cache import Tier
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.server.metrics import RuntimeMetrics, resident_bytes, runtime_stats


@dataclass(frozen=True)
class TierState:
    """One tier of adapters: every tenant has one adapter."""

    tier: str
    tenants: int
    bytes: int

    @property
    def bytes_a_tenant(self) -> float:
        """What one tenant takes where it rests."""
        return self.bytes / self.tenants if self.tenants else 0.0


def tier_states(loader: AdapterLoader, metrics: RuntimeMetrics, artifact_bytes: int) -> list[TierState]:
    """Return what the runtime itself reports, tier by tier; the device tier counts whole slots.

    ``artifact_bytes`` is the size of one adapter's artifact, all alike.
    """
    tenants = runtime_stats(loader, metrics).tenants.values()
    held = {entry.tier: entry.bytes for entry in resident_bytes(loader) if entry.kind == "adapter"}
    return [
        TierState("device", sum(1 for tiers in tenants if tiers["device"]), held["device"]),
        TierState("host", sum(1 for tiers in tenants if tiers["host"]), held["host"]),
        TierState("disk", round(held["disk"] / artifact_bytes), held["disk"]),
    ]


@dataclass(frozen=True)
class TierCounts:
    """How often an adapter was found in a tier, and how often it had to be brought there, so far."""

    found: dict[str, float]
    brought: dict[str, float]

    @classmethod
    def now(cls, metrics: RuntimeMetrics) -> "TierCounts":
        """Read the runtime's own counters."""
        return cls(
            {tier: _count(metrics, tier, "hit") for tier in (Tier.DEVICE, Tier.HOST)},
            {tier: _count(metrics, tier, "loaded") for tier in (Tier.DEVICE, Tier.HOST)},
        )

    def hit_rates_since(self, before: "TierCounts") -> dict[str, float | None]:
        """Return the share found, 0 to 1, of all that was asked of a tier since; None if nothing was."""
        rates: dict[str, float | None] = {}
        for tier, found in self.found.items():
            hits, loads = found - before.found[tier], self.brought[tier] - before.brought[tier]
            rates[tier] = hits / (hits + loads) if hits + loads else None
        return rates


def _count(metrics: RuntimeMetrics, tier: Tier, result: str) -> float:
    labels = {"tier": tier.value, "result": result}
    return metrics.registry.get_sample_value("hmi_adapter_loads_total", labels) or 0.0
