"""What is resident right now and for whom; for people, tools and heartbeats."""

from collections import Counter

from pydantic import BaseModel

from hmi_api.internal.runtimes import ResidentBytes
from hmi_runtime.server.metrics import RuntimeMetrics
from hmi_runtime.server.residency import Residency


class DomainStats(BaseModel):
    """Lookups of one domain version since the start of the process."""

    lookups: int
    hit_rate: float
    levels: dict[str, int]


class RuntimeStats(BaseModel):
    """The answer of ``/internal/v1/stats``."""

    registered_adapters: int
    queue_rows: int
    resident: list[ResidentBytes]
    tenants: dict[str, dict[str, int]]
    """Bytes by tenant and tier; the device tier counts whole slots."""
    domains: dict[str, DomainStats]
    engines: list[dict[str, str | int]]


def resident_bytes(residency: Residency) -> list[ResidentBytes]:
    """Return bytes by kind and tier."""
    mapped = residency.mapped_bytes
    return [
        ResidentBytes(kind="adapter", tier="device", bytes=sum(_device_bytes(residency).values())),
        ResidentBytes(kind="adapter", tier="host", bytes=residency.cache.host_used),
        ResidentBytes(kind="adapter", tier="disk", bytes=max(0, residency.disk.used - mapped)),
        ResidentBytes(kind="table", tier="host", bytes=mapped),
        ResidentBytes(kind="table", tier="disk", bytes=mapped),
    ]


def runtime_stats(residency: Residency, metrics: RuntimeMetrics) -> RuntimeStats:
    """Return everything there is to tell."""
    host: Counter[str] = Counter()
    for adapter, size in residency.cache.resident().items():
        host[adapter.key.partition("/")[0]] += size
    device = _device_bytes(residency)
    return RuntimeStats(
        registered_adapters=residency.registered,
        queue_rows=residency.pipeline.unanswered,
        resident=resident_bytes(residency),
        tenants={
            tenant: {"host": host[tenant], "device": device[tenant]} for tenant in sorted(host | device)
        },
        domains={
            name: DomainStats(lookups=counts.lookups, hit_rate=counts.hit_rate, levels=dict(counts.levels))
            for name, counts in sorted(metrics.domains.items())
        },
        engines=[
            {
                "base": engine.base.uri,
                "split": engine.key.split,
                "slots": engine.slots.slots,
                "slot_bytes": engine.slot_bytes,
                "in_slots": len(engine.slots.resident()),
            }
            for engine in residency.pipeline.engines()
        ],
    )


def _device_bytes(residency: Residency) -> Counter[str]:
    """Return bytes of occupied slots by tenant."""
    found: Counter[str] = Counter()
    for engine in residency.pipeline.engines():
        for adapter in engine.slots.resident():
            found[adapter.key.partition("/")[0]] += engine.slot_bytes
    return found
