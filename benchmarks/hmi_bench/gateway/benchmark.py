"""Gateway benchmark: latency of a runtime directly and through the gateway, idle and at constant rates."""

import asyncio
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hmi_bench import results
from hmi_bench.gateway.client import at_rate, one_by_one
from hmi_bench.gateway.processes import Stage, served_stage
from hmi_bench.timing import percentile, seconds_of

_WARM_UP = 200
_SYNCS = 300
_USAGE_BYTES = 1_000


@dataclass(frozen=True)
class Added:
    """Milliseconds with and without the gateway; ``rate`` is requests a second, 0 for one at a time.

    ``cpu`` is the processor time of the gateway's process for one request, background tasks included.
    """

    rate: float
    direct_p50: float
    direct_p99: float
    through_p50: float
    through_p99: float
    cpu: float

    @property
    def p50(self) -> float:
        """Added time at the median."""
        return self.through_p50 - self.direct_p50

    @property
    def p99(self) -> float:
        """Added time at the 99th percentile."""
        return self.through_p99 - self.direct_p99


def run_gateway(out: Path, *, requests: int, rates: Sequence[float]) -> str:
    """Measure, write ``gateway.json`` under ``out`` and return the table."""
    with TemporaryDirectory(prefix="hmi-gateway-") as name, served_stage(Path(name)) as stage:
        syncs = _sync_ms(stage.folder)
        measured = asyncio.run(_measure(stage, requests, rates))
    results.write_json(
        out / "gateway.json",
        requests=requests,
        sync_ms=syncs,
        measured=[asdict(row) for row in measured],
    )
    table = results.table(
        {
            "requests": f"{row.rate:g}/s" if row.rate else "one at a time",
            "p50 ms, direct": f"{row.direct_p50:.2f}",
            "p99 ms, direct": f"{row.direct_p99:.2f}",
            "p50 ms, through the gateway": f"{row.through_p50:.2f}",
            "p99 ms, through the gateway": f"{row.through_p99:.2f}",
            "added p50": f"{row.p50:.2f}",
            "added p99": f"{row.p99:.2f}",
            "CPU ms a request": f"{row.cpu:.2f}",
        }
        for row in measured
    )
    disk = f"Syncing a request's usage to this disk alone: {syncs['p50']:.2f} ms, p99 {syncs['p99']:.2f} ms."
    return f"{table}\n\n{disk}"


async def _measure(stage: Stage, requests: int, rates: Sequence[float]) -> list[Added]:
    await one_by_one([stage.direct, stage.through], _WARM_UP)
    before = stage.gateway_cpu_seconds()
    direct, through = await one_by_one([stage.direct, stage.through], requests)
    measured = [_added(0.0, direct, through, stage.gateway_cpu_seconds() - before)]
    for rate in rates:
        direct = await at_rate(stage.direct, rate, requests)
        before = stage.gateway_cpu_seconds()
        through = await at_rate(stage.through, rate, requests)
        measured.append(_added(rate, direct, through, stage.gateway_cpu_seconds() - before))
    return measured


def _added(rate: float, direct: list[float], through: list[float], cpu: float) -> Added:
    return Added(
        rate,
        direct_p50=statistics.median(direct) * 1000,
        direct_p99=_p99(direct) * 1000,
        through_p50=statistics.median(through) * 1000,
        through_p99=_p99(through) * 1000,
        cpu=cpu * 1000 / len(through),
    )


def _sync_ms(folder: Path) -> dict[str, float]:
    """Return the milliseconds for writing a request's usage to disk, which precedes each answer."""
    seconds = []
    with (folder / "syncs").open("ab", buffering=0) as file:
        for _ in range(_SYNCS):
            file.write(b"x" * _USAGE_BYTES)
            seconds.append(seconds_of(lambda: os.fdatasync(file.fileno())))
    return {"p50": statistics.median(seconds) * 1000, "p99": _p99(seconds) * 1000}


def _p99(seconds: list[float]) -> float:
    return percentile(seconds, 0.99)
