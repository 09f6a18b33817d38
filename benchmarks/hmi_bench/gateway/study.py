"""Gateway study: latency straight to the runtime and through the gateway, idle and at steady rates."""

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hmi_bench import results
from hmi_bench.gateway.client import at_rate, one_by_one
from hmi_bench.gateway.stage import Stage, served_stage
from hmi_bench.turns import percentile

_WARM_UP = 200


@dataclass(frozen=True)
class Added:
    """Milliseconds with and without the gateway; ``rate`` is requests a second, 0 for one at a time."""

    rate: float
    direct_p50: float
    direct_p99: float
    through_p50: float
    through_p99: float

    @property
    def p50(self) -> float:
        """What the gateway adds at the median."""
        return self.through_p50 - self.direct_p50

    @property
    def p99(self) -> float:
        """What the gateway adds at the 99th percentile."""
        return self.through_p99 - self.direct_p99


def run_gateway(out: Path, *, requests: int, rates: Sequence[float]) -> str:
    """Measure, write ``gateway.json`` under ``out`` and return the table."""
    with TemporaryDirectory(prefix="hmi-gateway-") as name, served_stage(Path(name)) as stage:
        measured = asyncio.run(_measure(stage, requests, rates))
    results.write_json(out / "gateway.json", requests=requests, measured=[asdict(row) for row in measured])
    rows = [
        [
            f"{row.rate:g}/s" if row.rate else "one at a time",
            *(f"{value:.2f}" for value in (row.direct_p50, row.direct_p99, row.through_p50, row.through_p99)),
            f"{row.p50:.2f}",
            f"{row.p99:.2f}",
        ]
        for row in measured
    ]
    header = [
        "requests",
        "p50 ms, straight",
        "p99",
        "p50 ms, by the gateway",
        "p99",
        "added p50",
        "added p99",
    ]
    return results.table(header, rows)


async def _measure(stage: Stage, requests: int, rates: Sequence[float]) -> list[Added]:
    await one_by_one([stage.direct, stage.through], _WARM_UP)
    measured = [_added(0.0, *await one_by_one([stage.direct, stage.through], requests))]
    for rate in rates:
        direct = await at_rate(stage.direct, rate, requests)
        measured.append(_added(rate, direct, await at_rate(stage.through, rate, requests)))
    return measured


def _added(rate: float, direct: list[float], through: list[float]) -> Added:
    shown = [f(seconds) * 1000 for seconds in (direct, through) for f in (statistics.median, _p99)]
    return Added(rate, *shown)


def _p99(seconds: list[float]) -> float:
    return percentile(seconds, 0.99)
