"""Scale benchmark: a runtime and a catalog that grow, measured at several numbers of adapters."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from hmi_api.internal.runtimes import AdapterServing
from hmi_bench import results
from hmi_bench.base_models import open_base
from hmi_bench.runtime_setup import publish_domain, runtime_settings, serving
from hmi_bench.scale.catalog import CatalogCost, measure_catalog
from hmi_bench.scale.memory import (
    MemoryFigures,
    TierCounts,
    TierState,
    bring_to_host,
    measure_memory,
    tier_states,
)
from hmi_bench.scale.population import Population, Registering, require_disk
from hmi_bench.scale.registered import Registered, measure_registered
from hmi_bench.scale.traffic import Answered, Latency, Source, WatchedStore, run_traffic, zipf_requests
from hmi_bench.texts import TextMaker, draw_lengths
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.server.metrics import RuntimeMetrics
from hmi_runtime.server.settings import RuntimeSettings

log = logging.getLogger(__name__)
_HEAD_LABELS = 16


@dataclass(frozen=True)
class ScalePlan:
    """Parameters of the benchmark. ``slots``, ``host`` and ``disk`` are the tiers' capacities in adapters."""

    base: str = "minilm"
    counts: tuple[int, ...] = (1, 100, 1_000, 10_000)
    catalog_counts: tuple[int, ...] = (10, 100, 1_000, 10_000)
    rank: int = 8
    slots: int = 64
    host: int = 2_000
    disk: int = 5_000
    exponent: float = 1.0
    clients: int = 32
    requests: int = 2_000
    registered: int = 100_000
    texts: int = 256
    other_entries: int = 50_000
    device: str = "cpu"
    precision: Literal["float32", "int8"] = "float32"


@dataclass(frozen=True)
class Stage:
    """Measurements of traffic over ``count`` registered adapters. Rates are shares, 0 to 1."""

    count: int
    requests_a_second: float
    warm: Latency
    disk: Latency
    store: Latency
    hit_rates: dict[str, float | None]
    tiers: list[TierState]
    registering: Registering


@dataclass(frozen=True)
class ScaleFigures:
    """All measurements."""

    stages: list[Stage]
    catalog: list[CatalogCost]
    memory: MemoryFigures
    registered: Registered


def measure_scale(plan: ScalePlan) -> ScaleFigures:
    """Measure ``plan`` in a temporary folder, which needs room for two copies of every adapter.

    Raises ``OSError`` before the start if the disk is too small.
    """
    with TemporaryDirectory(prefix="hmi-scale-") as name:
        folder = Path(name)
        catalog = measure_catalog(folder, plan.catalog_counts)
        log.info("catalog measured")
        (folder / "base").mkdir()
        base = open_base(plan.base, folder / "base")
        texts = TextMaker(base).texts(draw_lengths(plan.texts))
        store = WatchedStore(str(folder / "store"))
        domain = publish_domain(base, store, texts, other_entries=plan.other_entries)
        population = Population(domain, plan.rank)
        require_disk(folder, max(plan.counts), population.artifact_bytes)
        settings = _settings(plan, folder, population)
        stages = _grow(plan, settings, store, population, texts)
        memory = measure_memory(settings, population)
        registered = measure_registered(settings, population, texts, plan.registered)
    return ScaleFigures(stages, catalog, memory, registered)


def _grow(
    plan: ScalePlan,
    settings: RuntimeSettings,
    store: WatchedStore,
    population: Population,
    texts: Sequence[str],
) -> list[Stage]:
    metrics = RuntimeMetrics()
    with serving(settings, store, metrics) as loader:
        # The base model and the Domain are loaded first, so that the first adapter's time excludes them.
        opening = population.publish(max(plan.counts))
        loaded = loader.load(opening, population.domain.serving)
        loader.disk.delete(opening.artifact.digest)
        log.info("%s is loaded", loaded.domain.key)
        runtime = _Runtime(plan, loader, metrics, store, population, texts)
        return [runtime.stage(count) for count in sorted(plan.counts)]


@dataclass(frozen=True)
class _Runtime:
    """The runtime under test, and its adapters and texts."""

    plan: ScalePlan
    loader: AdapterLoader
    metrics: RuntimeMetrics
    store: WatchedStore
    population: Population
    texts: Sequence[str]

    def stage(self, count: int) -> Stage:
        """Register adapters up to ``count``, load the popular ones to memory, and send traffic."""
        registering = self.population.grow(self.loader, count)
        # The newest are the most popular, so that the disk tier contains after registration what it would
        # contain after traffic.
        popular = self.population.adapters[::-1]
        bring_to_host(self.loader.cache, popular[: self.plan.host][::-1])
        self._send(popular, self.plan.requests // 8, seed=1)
        before = TierCounts.now(self.metrics)
        answers, seconds = self._send(popular, self.plan.requests, seed=2)
        by_source = {source: [a for a in answers if a.source is source] for source in Source}
        cold = len(by_source[Source.DISK]) + len(by_source[Source.STORE])
        rates = TierCounts.now(self.metrics).hit_rates_since(before)
        rates["disk"] = len(by_source[Source.DISK]) / cold if cold else None
        stage = Stage(
            count=count,
            requests_a_second=len(answers) / seconds,
            warm=Latency.of(by_source[Source.MEMORY]),
            disk=Latency.of(by_source[Source.DISK]),
            store=Latency.of(by_source[Source.STORE]),
            hit_rates=rates,
            tiers=tier_states(self.loader, self.metrics, self.population.artifact_bytes),
            registering=registering,
        )
        log.info("%d adapters: %.0f requests a second", count, stage.requests_a_second)
        return stage

    def _send(
        self, popular: Sequence[AdapterServing], requests: int, *, seed: int
    ) -> tuple[list[Answered], float]:
        drawn = zipf_requests(popular, self.texts, requests, exponent=self.plan.exponent, seed=seed)
        return run_traffic(self.loader.pipeline, self.store, drawn, clients=self.plan.clients)


def _settings(plan: ScalePlan, folder: Path, population: Population) -> RuntimeSettings:
    """Return a runtime's settings with the plan's capacities for adapters of the population's size."""
    return runtime_settings(
        folder,
        device=plan.device,
        precision=plan.precision,
        device_slots=plan.slots,
        host_budget=plan.host * population.nbytes,
        disk_budget=plan.disk * population.artifact_bytes + population.domain.nbytes,
        max_rank=plan.rank,
        max_bottleneck=0,
        max_labels=_HEAD_LABELS,
        dense_heads=False,
    )


_NONE = "–"


def run_scale(out: Path, plan: ScalePlan) -> str:
    """Measure ``plan``, write ``scale.json`` and plots under ``out``, and return the tables."""
    figures = measure_scale(plan)
    memory = figures.memory
    results.write_json(
        out / "scale.json",
        plan=asdict(plan),
        stages=[asdict(stage) for stage in figures.stages],
        catalog=[asdict(cost) for cost in figures.catalog],
        memory={**asdict(memory), "hplms": memory.hplms, "whole_models": memory.whole_models},
        registered=asdict(figures.registered),
    )
    _plot(out, figures)
    parts = {
        "Traffic": _traffic_table(figures.stages),
        "Adapters in each tier after the traffic": _tier_table(figures.stages),
        "One more adapter on the runtime": _registering_table(figures.stages),
        "One more adapter in the catalog": _catalog_table(figures.catalog),
        f"{memory.adapters:,} hPLMs in one memory": _memory_table(memory),
        "Many registered adapters": _registered_table(figures.registered),
    }
    return "\n\n".join(f"### {title}\n\n{table}" for title, table in parts.items())


def _plot(out: Path, figures: ScaleFigures) -> None:
    counts = [stage.count for stage in figures.stages]
    results.lines(
        out / "scale-throughput.png",
        "Throughput by registered adapters",
        "adapters registered",
        "requests a second",
        {"Zipf traffic": (counts, [stage.requests_a_second for stage in figures.stages])},
    )
    registering = [stage.registering for stage in figures.stages]
    results.lines(
        out / "scale-registration.png",
        "Registering one more adapter",
        "adapters registered",
        "milliseconds, median",
        {
            "publish to the store": (counts, [1000 * r.publish for r in registering]),
            "fetch, verify and check on the runtime": (counts, [1000 * r.load for r in registering]),
            "all of the catalog's calls": (
                [cost.count for cost in figures.catalog],
                [1000 * cost.total.seconds for cost in figures.catalog],
            ),
        },
    )


def _traffic_table(stages: Sequence[Stage]) -> str:
    rows: list[dict[str, object]] = []
    for stage in stages:
        cold = stage.disk.requests + stage.store.requests
        rows.append(
            {
                "adapters": stage.count,
                "requests/s": stage.requests_a_second,
                "p50 ms, in memory": _milliseconds(stage.warm.p50),
                "p99 ms, in memory": _milliseconds(stage.warm.p99),
                "cold requests": _share(cold / (cold + stage.warm.requests)),
                "p50 ms, from disk": _milliseconds(stage.disk.p50),
                "p99 ms, from disk": _cold(stage.disk),
                "p99 ms, from the store": _cold(stage.store),
                "found in a slot": _share(stage.hit_rates["device"]),
                "found in host memory": _share(stage.hit_rates["host"]),
                "else found on disk": _share(stage.hit_rates["disk"]),
            }
        )
    return results.table(rows)


def _tier_table(stages: Sequence[Stage]) -> str:
    rows: list[dict[str, object]] = []
    for stage in stages:
        row: dict[str, object] = {"adapters": stage.count}
        for name, tier in zip(("slots", "host", "disk"), stage.tiers, strict=True):
            row |= {f"{name}: tenants": tier.tenants, f"{name}: kB a tenant": tier.bytes_a_tenant / 1e3}
        rows.append(row)
    return results.table(rows)


def _registering_table(stages: Sequence[Stage]) -> str:
    return results.table(
        {
            "adapters": registering.count,
            "ms to publish": 1000 * registering.publish,
            "ms to fetch, verify and check": 1000 * registering.load,
            "ms to route": 1000 * registering.route,
        }
        for registering in (stage.registering for stage in stages)
    )


def _catalog_table(costs: Sequence[CatalogCost]) -> str:
    return results.table(
        {
            "adapters": cost.count,
            "ms in all": 1000 * cost.total.seconds,
            "of them busy": 1000 * cost.total.busy,
            "SQL statements in all": cost.total.statements,
            **{
                f"ms (SQL) to {step.name}": f"{1000 * step.seconds:.1f} ({step.statements})"
                for step in cost.steps
            },
        }
        for cost in costs
    )


def _memory_table(memory: MemoryFigures) -> str:
    measured, counted, computed = "measured", "counted from tensors", "computed"
    rows = [
        (f"{memory.resident:,} adapters, all in host memory at once", measured, memory.adapter_bytes),
        ("growth of the process meanwhile", measured, memory.process_growth),
        ("base model, Domain and device slots, shared by all", counted, memory.shared_bytes),
        ("one whole model", counted, memory.whole_model_bytes),
        (f"{memory.adapters:,} hPLMs", computed, memory.hplms),
        (f"{memory.adapters:,} whole models", computed, memory.whole_models),
    ]
    table = results.table({"item": item, "how known": how, "GB": size / 1e9} for item, how, size in rows)
    return f"{table}\n\nWhole models take {memory.ratio:.1f} times the memory of hPLMs."


def _registered_table(registered: Registered) -> str:
    return results.table(
        [
            {
                "adapters registered": registered.adapters,
                "ms to register one": 1000 * registered.seconds_each,
                "kB of memory each": registered.bytes_each / 1e3,
                "ms of a request, one adapter registered": 1000 * registered.answer_of_one,
                "ms of a request, all registered": 1000 * registered.answer_of_many,
            }
        ]
    )


def _cold(latency: Latency) -> str:
    if latency.p99 is None:
        return _NONE
    return f"{1000 * latency.p99:.0f} ({latency.requests} requests)"


def _milliseconds(seconds: float | None) -> str:
    return _NONE if seconds is None else f"{1000 * seconds:.1f}"


def _share(share: float | None) -> str:
    return _NONE if share is None else f"{share:.1%}"
