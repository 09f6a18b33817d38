"""Scale study: a runtime and a catalog that grow, measured at several numbers of adapters."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from hmi_api.internal.runtimes import AdapterServing
from hmi_bench.bases import open_base
from hmi_bench.published import publish_domain, runtime_settings, serving
from hmi_bench.scale.catalog import CatalogCost, measure_catalog
from hmi_bench.scale.memory import MemoryFigures, bring_to_host, measure_memory
from hmi_bench.scale.population import Population, Registering, require_disk
from hmi_bench.scale.tiers import TierCounts, TierState, tier_states
from hmi_bench.scale.traffic import Answered, Latency, run_traffic, zipf_requests
from hmi_bench.scale.watched_store import Source, WatchedStore
from hmi_bench.serving.lengths import draw_lengths
from hmi_bench.texts import TextMaker
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.server.metrics import RuntimeMetrics
from hmi_runtime.server.settings import RuntimeSettings

log = logging.getLogger(__name__)

_HEAD_LABELS = 16


@dataclass(frozen=True)
class ScalePlan:
    """What is measured. ``slots``, ``host`` and ``disk`` are how many adapters each tier has room for."""

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
    texts: int = 256
    other_entries: int = 50_000
    device: str = "cpu"
    precision: Literal["float32", "int8"] = "float32"


@dataclass(frozen=True)
class Stage:
    """What traffic over ``count`` registered adapters was like. Rates are shares, 0 to 1."""

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
    """Everything that was measured."""

    stages: list[Stage]
    catalog: list[CatalogCost]
    memory: MemoryFigures


def measure_scale(plan: ScalePlan) -> ScaleFigures:
    """Measure ``plan`` in a temporary folder, which needs room for every adapter twice.

    Raises ``OSError`` before it begins when the disk is too small.
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
    return ScaleFigures(stages, catalog, memory)


def _grow(
    plan: ScalePlan,
    settings: RuntimeSettings,
    store: WatchedStore,
    population: Population,
    texts: Sequence[str],
) -> list[Stage]:
    metrics = RuntimeMetrics()
    with serving(settings, store, metrics) as loader:
        # The base model and the Domain are loaded first, or the first adapter would seem to cost them.
        opening = population.publish(max(plan.counts))
        loaded = loader.load(opening, population.domain.serving)
        loader.disk.delete(opening.artifact.digest)
        log.info("%s is served", loaded.domain.key)
        runtime = _Runtime(plan, loader, metrics, store, population, texts)
        return [runtime.stage(count) for count in sorted(plan.counts)]


@dataclass(frozen=True)
class _Runtime:
    """The runtime under test, and what is asked of it."""

    plan: ScalePlan
    loader: AdapterLoader
    metrics: RuntimeMetrics
    store: WatchedStore
    population: Population
    texts: Sequence[str]

    def stage(self, count: int) -> Stage:
        """Register adapters until there are ``count``, fill memory with the popular ones, send traffic."""
        registering = self.population.grow(self.loader, count)
        # The newest are the most popular, so that what the disk tier kept while they came is what it would
        # keep under their traffic.
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
        asked = zipf_requests(popular, self.texts, requests, exponent=self.plan.exponent, seed=seed)
        return run_traffic(self.loader.pipeline, self.store, asked, clients=self.plan.clients)


def _settings(plan: ScalePlan, folder: Path, population: Population) -> RuntimeSettings:
    """Return a runtime's settings with room for so many adapters of the population's size in each tier."""
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
