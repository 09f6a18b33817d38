"""Memory: the cache's tiers by tenant, and thousands of hPLMs in one memory beside as many whole models."""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hmi_api.errors import HmiError
from hmi_api.internal.runtimes import AdapterServing
from hmi_bench.runtime_setup import serving
from hmi_bench.scale.population import Population
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.cache.adapter_cache import AdapterCache, AdapterId
from hmi_runtime.cache.tiers import Tier
from hmi_runtime.models.source import BaseModel
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.server.metrics import RuntimeMetrics, resident_bytes, runtime_stats
from hmi_runtime.server.settings import RuntimeSettings


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


_SPARE_SHARE = 0.7
_MOST_UNDER_WAY = 256
_TIMEOUT = 600.0


@dataclass(frozen=True)
class MemoryFigures:
    """Bytes of many hPLMs beside as many whole models.

    Measured: ``resident`` adapters' tensors as the cache counts them (``adapter_bytes``), and what the
    process grew by while they came (``process_growth``). Counted from tensors: ``shared_bytes`` (base model,
    Domain, device slots) and ``whole_model_bytes``. Computed: everything that the properties say.
    """

    adapters: int
    resident: int
    adapter_bytes: int
    process_growth: int
    shared_bytes: int
    whole_model_bytes: int

    @property
    def bytes_an_adapter(self) -> float:
        """What one more hPLM adds."""
        return self.adapter_bytes / self.resident

    @property
    def hplms(self) -> float:
        """All of ``adapters``: shared once, and each one's own."""
        return self.shared_bytes + self.adapters * self.bytes_an_adapter

    @property
    def whole_models(self) -> float:
        """As many whole models."""
        return float(self.adapters * self.whole_model_bytes)

    @property
    def ratio(self) -> float:
        """How many times more whole models take."""
        return self.whole_models / self.hplms


def measure_memory(settings: RuntimeSettings, population: Population) -> MemoryFigures:
    """Bring as many of a population's adapters to host memory as the machine has to spare."""
    domain, adapters = population.domain, population.adapters
    resident = min(len(adapters), int(_SPARE_SHARE * available_memory() / population.nbytes))
    roomy = settings.model_copy(
        update={
            "host_budget": len(adapters) * population.nbytes,
            "disk_budget": len(adapters) * population.artifact_bytes + domain.nbytes,
        }
    )
    with serving(roomy, domain.store) as loader:
        for adapter in adapters[:resident]:
            loader.activate(loader.load(adapter, domain.serving))
        before = process_memory()
        bring_to_host(loader.cache, adapters[:resident])
        return MemoryFigures(
            adapters=len(adapters),
            resident=resident,
            adapter_bytes=loader.cache.host_used,
            process_growth=process_memory() - before,
            shared_bytes=_shared_bytes(loader, domain.base),
            whole_model_bytes=whole_model_bytes(domain.base),
        )


def bring_to_host(cache: AdapterCache[AdapterWeights], adapters: Sequence[AdapterServing]) -> None:
    """Bring adapters to host memory, in order, a few at a time; raises the first ``HmiError`` there was."""
    free = threading.Semaphore(_MOST_UNDER_WAY)
    failures: list[HmiError] = []

    def arrived(adapter: AdapterId, error: HmiError | None) -> None:
        if error is None:
            cache.release(adapter)
        else:
            failures.append(error)
        free.release()

    for adapter in adapters:
        name = AdapterId.of(adapter)
        _take(free)
        cache.acquire(name, lambda error, name=name: arrived(name, error))  # type: ignore[misc]
    for _ in range(_MOST_UNDER_WAY):
        _take(free)
    if failures:
        raise failures[0]


def whole_model_bytes(base: BaseModel) -> int:
    """Return the bytes of one whole model's parameters, as they lie in memory."""
    return sum(p.numel() * p.element_size() for p in base.encoder().parameters())


def available_memory() -> int:
    """Return the bytes that the machine can still give out."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])


def process_memory() -> int:
    """Return the bytes of this process that are in memory and nobody else's file."""
    resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _shared_bytes(loader: AdapterLoader, base: BaseModel) -> int:
    slots = sum(engine.slots.slots * engine.slot_bytes for engine in loader.pipeline.engines())
    return whole_model_bytes(base) + loader.mapped_bytes + slots


def _take(free: threading.Semaphore) -> None:
    if not free.acquire(timeout=_TIMEOUT):
        raise TimeoutError("adapters did not come to memory in time")
