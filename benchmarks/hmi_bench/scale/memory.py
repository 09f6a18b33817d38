"""Memory: the cache's tiers by tenant, and thousands of hPLMs compared with as many whole models."""

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
        """Bytes of one tenant in this tier."""
        return self.bytes / self.tenants if self.tenants else 0.0


def tier_states(loader: AdapterLoader, metrics: RuntimeMetrics, artifact_bytes: int) -> list[TierState]:
    """Return the runtime's own report of each tier; the device tier counts whole slots.

    ``artifact_bytes`` is the size of each adapter's artifact.
    """
    tenants = runtime_stats(loader, metrics).tenants.values()
    used = {entry.tier: entry.bytes for entry in resident_bytes(loader) if entry.kind == "adapter"}
    return [
        TierState("device", sum(1 for tiers in tenants if tiers["device"]), used["device"]),
        TierState("host", sum(1 for tiers in tenants if tiers["host"]), used["host"]),
        TierState("disk", round(used["disk"] / artifact_bytes), used["disk"]),
    ]


@dataclass(frozen=True)
class TierCounts:
    """How often an adapter was found in a tier, and how often it was loaded to it, so far."""

    found: dict[str, float]
    loaded: dict[str, float]

    @classmethod
    def now(cls, metrics: RuntimeMetrics) -> "TierCounts":
        """Read the runtime's own counters."""
        return cls(
            {tier: _count(metrics, tier, "hit") for tier in (Tier.DEVICE, Tier.HOST)},
            {tier: _count(metrics, tier, "loaded") for tier in (Tier.DEVICE, Tier.HOST)},
        )

    def hit_rates_since(self, before: "TierCounts") -> dict[str, float | None]:
        """Return each tier's share of hits since ``before``, 0 to 1; None without requests."""
        rates: dict[str, float | None] = {}
        for tier, found in self.found.items():
            hits, loads = found - before.found[tier], self.loaded[tier] - before.loaded[tier]
            rates[tier] = hits / (hits + loads) if hits + loads else None
        return rates


def _count(metrics: RuntimeMetrics, tier: Tier, result: str) -> float:
    labels = {"tier": tier.value, "result": result}
    return metrics.registry.get_sample_value("hmi_adapter_loads_total", labels) or 0.0


_SPARE_SHARE = 0.7
_MOST_LOADING = 256
_TIMEOUT = 600.0


@dataclass(frozen=True)
class MemoryFigures:
    """Bytes of many hPLMs and of as many whole models.

    Measured: the tensors of ``resident`` adapters as the cache counts them (``adapter_bytes``), and the
    growth of the process while they were loaded (``process_growth``). Counted from tensors: ``shared_bytes``
    (base model, Domain, device slots) and ``whole_model_bytes``. Computed: the properties.
    """

    adapters: int
    resident: int
    adapter_bytes: int
    process_growth: int
    shared_bytes: int
    whole_model_bytes: int

    @property
    def bytes_an_adapter(self) -> float:
        """Bytes of one more hPLM."""
        return self.adapter_bytes / self.resident

    @property
    def hplms(self) -> float:
        """Bytes of ``adapters`` hPLMs: the shared bytes, and each adapter's own."""
        return self.shared_bytes + self.adapters * self.bytes_an_adapter

    @property
    def whole_models(self) -> float:
        """Bytes of as many whole models."""
        return float(self.adapters * self.whole_model_bytes)

    @property
    def ratio(self) -> float:
        """Bytes of whole models relative to hPLMs."""
        return self.whole_models / self.hplms


def measure_memory(settings: RuntimeSettings, population: Population) -> MemoryFigures:
    """Load as many of a population's adapters to host memory as the machine has free memory for."""
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
    """Load adapters to host memory, in order, a few at a time; raise the first ``HmiError``."""
    free = threading.Semaphore(_MOST_LOADING)
    failures: list[HmiError] = []

    def loaded(adapter: AdapterId, error: HmiError | None) -> None:
        if error is None:
            cache.release(adapter)
        else:
            failures.append(error)
        free.release()

    for adapter in adapters:
        name = AdapterId.of(adapter)
        _take(free)
        cache.acquire(name, lambda error, name=name: loaded(name, error))  # type: ignore[misc]
    for _ in range(_MOST_LOADING):
        _take(free)
    if failures:
        raise failures[0]


def whole_model_bytes(base: BaseModel) -> int:
    """Return the bytes of one whole model's parameters in memory."""
    return sum(p.numel() * p.element_size() for p in base.encoder().parameters())


def available_memory() -> int:
    """Return the machine's available memory in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])


def process_memory() -> int:
    """Return this process's resident memory without shared pages, in bytes."""
    resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _shared_bytes(loader: AdapterLoader, base: BaseModel) -> int:
    slots = sum(engine.slots.slots * engine.slot_bytes for engine in loader.pipeline.engines())
    return whole_model_bytes(base) + loader.table_memory.host_bytes + slots


def _take(free: threading.Semaphore) -> None:
    if not free.acquire(timeout=_TIMEOUT):
        raise TimeoutError("adapters were not loaded to memory in time")
