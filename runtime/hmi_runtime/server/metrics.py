"""Metrics of a runtime, for Prometheus, ``/internal/v1/stats`` and heartbeats."""

import threading
from collections import Counter as Tally
from functools import partial
from typing import Self

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pydantic import BaseModel, Field

from hmi_api.internal.precision import EngineReport
from hmi_api.internal.runtimes import ResidentBytes
from hmi_runtime.cache.tiers import CacheEvents, Tier
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.serving.staging import StagedBatch
from hmi_runtime.serving.window_counts import WindowCounter
from hmi_runtime.serving.worker import PipelineEvents
from hmi_runtime.tables.lookup import LookupSource
from hmi_runtime.tables.tiers import TableEvents

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 128)
_MOST_VERSIONS = 4096
"""Versions of Domains whose lookups are counted: a refresh adds one, and refreshes may be frequent."""


class RuntimeMetrics(CacheEvents, PipelineEvents, TableEvents):
    """Counts the events of the cache, the pipeline and the tables, in a separate registry. Thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._sources: dict[str, Tally[str]] = {}  # by Domain version, the last looked up last
        self._lock = threading.Lock()
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        seconds = partial(histogram, buckets=_SECONDS)
        self._batch_rows = histogram("hmi_batch_size", "Rows of a batch.", buckets=_BATCH_ROWS)
        self._shared = counter(
            "hmi_shared_representations_total",
            "Rows that shared the representation of another row of their batch.",
        )
        self._stage_seconds = seconds("hmi_stage_seconds", "Seconds of a batch in a stage.", ["stage"])
        self._lookups = counter("hmi_plot_lookups_total", "Windows looked up in tables.", ["level", "result"])
        self._table_rows = counter(
            "hmi_table_rows_total",
            "Windows found in tables, by the tier that the row was read from.",
            ["tier"],
        )
        self._table_reads = counter(
            "hmi_table_read_bytes_total",
            "Bytes of tables' rows read from the local disk, or from the page cache in front of it.",
        )
        self._table_admissions = counter(
            "hmi_table_admissions_total",
            "Rows of tables copied to a tier because they are looked up often.",
            ["tier"],
        )
        windows_counted = counter(
            "hmi_windows_counted_total", "Windows counted for the refresh of tables, once for each tenant."
        )
        windows_dropped = counter(
            "hmi_windows_dropped_total", "Counted windows that will not be reported, because of the bounds."
        )
        domains_dropped = counter(
            "hmi_window_domains_dropped_total",
            "Versions of Domains that were left out of a report of counted windows, because it had too many.",
        )
        self.windows = WindowCounter(
            on_counted=windows_counted.inc,
            on_dropped=windows_dropped.inc,
            on_domains_dropped=domains_dropped.inc,
        )
        """Which windows traffic looked up, until they are reported."""
        self._tokens = counter("hmi_tokens_total", "Tokens computed.", ["direction"])
        self._padding = counter("hmi_padding_tokens_total", "Padding tokens computed.")
        self._loads = counter(
            "hmi_adapter_loads_total", "Adapters requested from a tier.", ["tier", "result"]
        )
        self._load_seconds = seconds(
            "hmi_adapter_load_seconds", "Seconds to load an adapter into a tier.", ["tier"]
        )
        self._evictions = counter(
            "hmi_adapter_evictions_total", "Adapters evicted from a tier.", ["from", "to"]
        )
        self._quarantines = counter(
            "hmi_adapter_quarantines_total",
            "Times that an adapter was quarantined because its rows kept failing.",
        )
        self.resident = gauge("hmi_resident_bytes", "Bytes in a tier.", ["kind", "tier"])
        self.queue = gauge("hmi_queue_rows", "Rows accepted that have no result yet.")
        self.adapters = gauge("hmi_registered_adapters", "Adapter versions loaded.")
        engine = ["base", "split", "precision", "kernel"]
        self._precision = gauge(
            "hmi_runtime_precision", "1 for what a base model's upper layers are computed in.", engine
        )
        self._candidates = gauge(
            "hmi_runtime_precision_candidate_milliseconds",
            "Least time of one layer when candidates were measured.",
            engine,
        )
        self.requests = counter("hmi_requests_total", "Requests answered.", ["route", "code"])
        self.request_seconds = seconds("hmi_request_seconds", "Seconds of a request in this runtime.")

    def show_precision(self, report: EngineReport) -> None:
        """Show what an engine computes in, and the times of all candidates."""
        engine = (report.base, str(report.split))
        self._precision.labels(*engine, report.choice.precision, report.choice.kernel).set(1)
        for one in report.choice.candidates:
            if one.milliseconds is not None:
                self._candidates.labels(*engine, one.precision, one.kernel).set(one.milliseconds)

    # --- events of the cache ------------------------------------------------------------------------

    def loaded(self, tier: Tier, seconds: float, *, failed: bool) -> None:
        """Count a load."""
        self._loads.labels(tier.value, "failed" if failed else "loaded").inc()
        self._load_seconds.labels(tier.value).observe(seconds)

    def hit(self, tier: Tier) -> None:
        """Count an adapter that was in the tier already."""
        self._loads.labels(tier.value, "hit").inc()

    def evicted(self, source: Tier, target: Tier) -> None:
        """Count an eviction."""
        self._evictions.labels(source.value, target.value).inc()

    # --- events of the tables -----------------------------------------------------------------------

    def rows_found(self, tier: Tier, rows: int) -> None:
        """Count windows found in a tier."""
        self._table_rows.labels(tier.value).inc(rows)

    def bytes_read(self, count: int) -> None:
        """Count bytes read from the local disk."""
        self._table_reads.inc(count)

    def rows_admitted(self, tier: Tier, rows: int) -> None:
        """Count rows copied to a tier."""
        self._table_admissions.labels(tier.value).inc(rows)

    # --- events of the pipeline ---------------------------------------------------------------------

    def staged(self, batch: StagedBatch) -> None:
        """Count the windows of a batch."""
        self.windows.add(batch)

    def computed(self, batch: StagedBatch, compute_seconds: float) -> None:
        """Count a batch."""
        shared = batch.representations
        if shared is None:
            return
        self._batch_rows.observe(len(batch.rows))
        self._shared.inc(len(batch.rows) - len(shared.lengths))
        self._stage_seconds.labels("stage").observe(batch.staging_seconds)
        self._stage_seconds.labels("compute").observe(compute_seconds)
        tokens = sum(row.text.length for row in batch.rows)
        self._tokens.labels("input").inc(tokens)
        self._padding.inc(batch.tokens - tokens)
        text = token = 0
        for domain, count in zip(shared.domains, shared.texts, strict=True):
            end = token + sum(shared.lengths[text : text + count])
            found = np.bincount(shared.sources[token:end])
            names = {
                LookupSource(source).name.lower(): int(found[source])
                for source in found.nonzero()[0].tolist()
            }
            for name, windows in names.items():
                self._lookups.labels(name, "miss" if name == "computed" else "hit").inc(windows)
            self._add_sources(f"{domain.key}@{domain.version}", names)
            text, token = text + count, end

    def sources(self) -> dict[str, Tally[str]]:
        """Return by Domain version how many windows came from each ``LookupSource``.

        Counted since the process started, for the last few thousand versions that were looked up.
        """
        with self._lock:
            return {version: Tally(sources) for version, sources in self._sources.items()}

    def _add_sources(self, version: str, names: dict[str, int]) -> None:
        with self._lock:
            found = self._sources.pop(version, None) or Tally()
            found.update(names)
            self._sources[version] = found
            if len(self._sources) > _MOST_VERSIONS:
                del self._sources[next(iter(self._sources))]

    def quarantined(self) -> None:
        """Count a quarantine; the log and the rows' errors name the adapter."""
        self._quarantines.inc()


class DomainStats(BaseModel):
    """Lookups of one Domain version since the process started."""

    lookups: int
    hit_rate: float = Field(description="Share of windows that were not computed, 0 to 1.")
    levels: dict[str, int] = Field(description="Windows by ``LookupSource``.")

    @classmethod
    def of(cls, sources: Tally[str]) -> Self:
        """Return the statistics of windows counted by source."""
        lookups = sources.total()
        hit_rate = 1 - sources["computed"] / lookups if lookups else 0.0
        return cls(lookups=lookups, hit_rate=hit_rate, levels=sources)


class RuntimeStats(BaseModel):
    """Response body of ``/internal/v1/stats``."""

    registered_adapters: int
    queue_rows: int
    resident: list[ResidentBytes]
    tenants: dict[str, dict[str, int]]
    """Bytes by tenant and tier; the device tier counts whole slots."""
    domains: dict[str, DomainStats]
    engines: list[dict[str, str | int]]


def resident_bytes(loader: AdapterLoader) -> list[ResidentBytes]:
    """Return the bytes in use by kind and tier."""
    mapped = loader.mapped_bytes
    return [
        ResidentBytes(kind="adapter", tier="device", bytes=sum(_device_bytes(loader).values())),
        ResidentBytes(kind="adapter", tier="host", bytes=loader.cache.host_used),
        ResidentBytes(kind="adapter", tier="disk", bytes=max(0, loader.disk.used - mapped)),
        ResidentBytes(kind="table", tier="device", bytes=loader.table_memory.device_bytes),
        ResidentBytes(kind="table", tier="host", bytes=loader.table_memory.host_bytes),
        ResidentBytes(kind="table", tier="disk", bytes=mapped),
    ]


def runtime_stats(loader: AdapterLoader, metrics: RuntimeMetrics) -> RuntimeStats:
    """Return the current statistics."""
    host: Tally[str] = Tally()
    for adapter, size in loader.cache.loaded().items():
        host[adapter.tenant] += size
    device = _device_bytes(loader)
    return RuntimeStats(
        registered_adapters=loader.loaded_versions,
        queue_rows=loader.pipeline.unanswered,
        resident=resident_bytes(loader),
        tenants={
            tenant: {"host": host[tenant], "device": device[tenant]} for tenant in sorted(host | device)
        },
        domains={name: DomainStats.of(sources) for name, sources in sorted(metrics.sources().items())},
        engines=[
            {
                "base": engine.base.uri,
                "split": engine.key.split,
                "precision": engine.precision.choice.precision,
                "kernel": engine.precision.choice.kernel,
                "slots": engine.slots.slots,
                "slot_bytes": engine.slot_bytes,
                "in_slots": len(engine.slots.loaded()),
            }
            for engine in loader.pipeline.engines()
        ],
    )


def _device_bytes(loader: AdapterLoader) -> Tally[str]:
    """Return bytes of occupied slots by tenant."""
    found: Tally[str] = Tally()
    for engine in loader.pipeline.engines():
        for adapter in engine.slots.loaded():
            found[adapter.tenant] += engine.slot_bytes
    return found
