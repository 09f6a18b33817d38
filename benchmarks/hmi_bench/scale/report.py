"""Scale's tables, JSON and plots."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hmi_bench import results
from hmi_bench.scale.catalog import CatalogCost
from hmi_bench.scale.memory import MemoryFigures
from hmi_bench.scale.study import ScaleFigures, ScalePlan, Stage, measure_scale
from hmi_bench.scale.traffic import Latency

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
    )
    _plot(out, figures)
    parts = {
        "Traffic": _traffic_table(figures.stages),
        "What rests where, after the traffic": _tier_table(figures.stages),
        "One more adapter on the runtime": _registering_table(figures.stages),
        "One more adapter in the catalog": _catalog_table(figures.catalog),
        f"{memory.adapters:,} hPLMs in one memory": _memory_table(memory),
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
        "Making one more adapter known",
        "adapters registered",
        "milliseconds, median",
        {
            "publish to the store": (counts, [1000 * r.publish for r in registering]),
            "fetch, verify and check on the runtime": (counts, [1000 * r.load for r in registering]),
            "all of the catalog's calls": (
                [cost.count for cost in figures.catalog],
                [1000 * cost.seconds for cost in figures.catalog],
            ),
        },
    )


def _traffic_table(stages: Sequence[Stage]) -> str:
    header = [
        "adapters", "requests/s", "p50 ms, in memory", "p99 ms, in memory", "cold requests",
        "p99 ms, from disk", "p99 ms, from the store", "found in a slot", "found in host memory",
        "else found on disk",
    ]  # fmt: skip
    rows: list[list[object]] = []
    for stage in stages:
        cold = stage.disk.requests + stage.store.requests
        rows.append(
            [
                stage.count,
                stage.requests_a_second,
                _milliseconds(stage.warm.p50),
                _milliseconds(stage.warm.p99),
                _share(cold / (cold + stage.warm.requests)),
                _cold(stage.disk),
                _cold(stage.store),
                *(_share(stage.hit_rates[tier]) for tier in ("device", "host", "disk")),
            ]
        )
    return results.table(header, rows)


def _tier_table(stages: Sequence[Stage]) -> str:
    header = ["adapters", *(f"{name}: {what}" for name in ("slots", "host", "disk") for what in
              ("tenants", "kB a tenant"))]  # fmt: skip
    rows = [
        [stage.count, *(value for tier in stage.tiers for value in (tier.tenants, tier.bytes_a_tenant / 1e3))]
        for stage in stages
    ]
    return results.table(header, rows)


def _registering_table(stages: Sequence[Stage]) -> str:
    header = ["adapters", "ms to publish", "ms to fetch, verify and check", "ms to route"]
    made = [stage.registering for stage in stages]
    return results.table(header, [[r.count, *(1000 * s for s in (r.publish, r.load, r.route))] for r in made])


def _catalog_table(costs: Sequence[CatalogCost]) -> str:
    names = [step.name for step in costs[0].steps]
    header = [
        "adapters",
        "ms in all",
        "of them busy",
        "SQL statements in all",
        *(f"ms (SQL) to {name}" for name in names),
    ]
    rows: list[list[object]] = [
        [
            cost.count,
            1000 * cost.seconds,
            1000 * cost.busy,
            cost.statements,
            *(f"{1000 * step.seconds:.1f} ({step.statements})" for step in cost.steps),
        ]
        for cost in costs
    ]
    return results.table(header, rows)


def _memory_table(memory: MemoryFigures) -> str:
    measured, counted, computed = "measured", "counted from tensors", "computed"
    rows: list[list[object]] = [
        [f"{memory.resident:,} adapters, all in host memory at once", measured, memory.adapter_bytes / 1e9],
        ["what the process grew by as they came", measured, memory.process_growth / 1e9],
        ["base model, Domain and device slots, shared by all", counted, memory.shared_bytes / 1e9],
        ["one whole model", counted, memory.whole_model_bytes / 1e9],
        [f"{memory.adapters:,} hPLMs", computed, memory.hplms / 1e9],
        [f"{memory.adapters:,} whole models", computed, memory.whole_models / 1e9],
    ]
    told = f"Whole models take {memory.ratio:.1f} times the memory of hPLMs."
    return results.table(["what", "how known", "GB"], rows) + f"\n\n{told}"


def _cold(latency: Latency) -> str:
    if latency.p99 is None:
        return _NONE
    return f"{1000 * latency.p99:.0f} ({latency.requests} requests)"


def _milliseconds(seconds: float | None) -> str:
    return _NONE if seconds is None else f"{1000 * seconds:.1f}"


def _share(share: float | None) -> str:
    return _NONE if share is None else f"{share:.1%}"
