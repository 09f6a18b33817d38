"""Clients that each wait for their answer before they ask again, and what two runtimes answer to one text."""

import asyncio
import itertools
import json
import random
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hmi_api.internal.inference import InferRow, RowResult
from hmi_bench.gateway.client import Connection, Target
from hmi_bench.mixed_pools.pools import SINGLE, SPREAD, Pool, PoolRuntime
from hmi_bench.mixed_pools.population import TrainedTask
from hmi_bench.timing import percentile

_ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Served:
    """What a tenant's clients got: texts a second, and milliseconds of a request."""

    texts_a_second: float
    p50: float
    p99: float


@dataclass(frozen=True)
class Round:
    """One measurement of a pool. ``shares`` are the runtimes' parts of the requests of ``spread``, 0 to 1."""

    spread: Served
    shares: list[float]
    single: Served | None


def measure(
    pool: Pool, tasks: Sequence[TrainedTask], *, clients: int, single: int, texts: int, seconds: float
) -> Round:
    """Let ``clients`` of the tenant on both runtimes ask, and ``single`` of the other one.

    A request has ``texts`` texts.
    """
    before = [runtime.answered() for runtime in pool.runtimes]
    started = time.perf_counter()
    found, others = asyncio.run(_load(pool, tasks, clients, single, texts, seconds))
    took = time.perf_counter() - started
    after = [runtime.answered() for runtime in pool.runtimes]
    answered = [
        late - early - (len(others) if runtime is pool.single_on else 0)
        for runtime, early, late in zip(pool.runtimes, before, after, strict=True)
    ]
    return Round(
        _served(found, texts, took),
        [one / sum(answered) for one in answered],
        _served(others, texts, took) if others else None,
    )


def median_round(rounds: Sequence[Round]) -> Round:
    """Return the medians of all figures."""
    singles = [one.single for one in rounds if one.single is not None]
    return Round(
        _median([one.spread for one in rounds]),
        [statistics.median(shares) for shares in zip(*(one.shares for one in rounds), strict=True)],
        _median(singles) if singles else None,
    )


def _median(found: Sequence[Served]) -> Served:
    return Served(
        statistics.median(one.texts_a_second for one in found),
        statistics.median(one.p50 for one in found),
        statistics.median(one.p99 for one in found),
    )


def _served(seconds: Sequence[float], texts: int, took: float) -> Served:
    return Served(
        len(seconds) * texts / took, statistics.median(seconds) * 1000, percentile(seconds, 0.99) * 1000
    )


async def _load(
    pool: Pool, tasks: Sequence[TrainedTask], clients: int, single: int, texts: int, seconds: float
) -> tuple[list[float], list[float]]:
    until = time.perf_counter() + seconds
    tenants = [SPREAD] * clients + [SINGLE] * single
    took = await asyncio.gather(
        *(_client(_requests(pool, tenant, tasks, texts, n), until) for n, tenant in enumerate(tenants))
    )
    return _flat(took[:clients]), _flat(took[clients:])


def _flat(lists: Iterable[list[float]]) -> list[float]:
    return list(itertools.chain.from_iterable(lists))


async def _client(requests: Iterator[Target], until: float) -> list[float]:
    connection = await Connection.open(next(requests))
    seconds = []
    while time.perf_counter() < until:
        seconds.append(await connection.send_other(next(requests).request))
    await connection.close()
    return seconds


def _requests(
    pool: Pool, tenant: str, tasks: Sequence[TrainedTask], texts: int, seed: int
) -> Iterator[Target]:
    source = random.Random(seed)  # noqa: S311 - no secrets
    while True:
        task = source.choice(tasks)
        body = {"model": task.name, "input": source.choices(task.texts, k=texts)}
        yield Target(pool.plane.port, "/classify", pool.keys[tenant], json.dumps(body).encode())


@dataclass(frozen=True)
class Difference:
    """How often the answers of two runtimes have another label, and their largest difference."""

    answers: int
    other_labels: int
    largest: float
    """Of a probability."""
    largest_margin: float
    """Of the two most probable labels, by the first runtime, where the labels differ; 0 if none does."""


def compare(pool: Pool, tasks: Sequence[TrainedTask], *, foreign: bool) -> Difference:
    """Ask both runtimes for the texts of every task, each in batches of its own.

    ``foreign``: for the texts of the next task instead, for which an adapter was not trained.
    """
    shift = 1 if foreign else 0
    rows = [
        InferRow(adapter=f"{SPREAD}/{task.name}", text=text)
        for number, task in enumerate(tasks)
        for text in tasks[(number + shift) % len(tasks)].texts
    ]
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)  # noqa: S311 - no secrets
    first, second = pool.runtimes
    return difference(_answers(first, rows, range(len(rows))), _answers(second, rows, order))


def _answers(runtime: PoolRuntime, rows: Sequence[InferRow], order: Sequence[int]) -> list[RowResult]:
    """Return the answers to ``rows``, which are sent in ``order``."""
    found: dict[int, RowResult] = {}
    for start in range(0, len(order), _ROWS_AT_ONCE):
        part = order[start : start + _ROWS_AT_ONCE]
        found |= zip(part, runtime.infer([rows[number] for number in part]), strict=True)
    return [found[number] for number in range(len(rows))]


def difference(first: Sequence[RowResult], second: Sequence[RowResult]) -> Difference:
    """Compare answers to the same rows."""
    margins = [_margin(one) for one, other in zip(first, second, strict=True) if _best(one) != _best(other)]
    return Difference(
        answers=len(first),
        other_labels=len(margins),
        largest=max(
            abs(a - b)
            for one, other in zip(first, second, strict=True)
            for a, b in zip(one.scores, other.scores, strict=True)
        ),
        largest_margin=max(margins, default=0.0),
    )


def _best(result: RowResult) -> int:
    return max(range(len(result.scores)), key=result.scores.__getitem__)


def _margin(result: RowResult) -> float:
    best, next_best = sorted(result.scores, reverse=True)[:2]
    return best - next_best
