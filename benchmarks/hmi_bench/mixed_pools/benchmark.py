"""Mixed pools benchmark: throughput, latency and answers of pairs of runtimes, measured in turns."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hmi_api.internal.precision import PrecisionSetting
from hmi_bench import results
from hmi_bench.base_models import open_base
from hmi_bench.mixed_pools.clients import Difference, Round, compare, measure, median_round
from hmi_bench.mixed_pools.pools import Pool, running_pool
from hmi_bench.mixed_pools.population import make_population

log = logging.getLogger(__name__)
Pair = tuple[PrecisionSetting, PrecisionSetting]


@dataclass(frozen=True)
class MixedPoolsPlan:
    """Parameters: clients of the tenant on both runtimes and of the tenant on one, and texts of a request.

    A tenant whose adapters have one replica is placed on the first runtime of a pair.
    """

    data: Path = Path("examples/demo/data")
    base: str = "minilm"
    pairs: Sequence[Pair] = (
        ("int8", "int8"),
        ("float32", "float32"),
        ("int8", "float32"),
        ("float32", "int8"),
    )
    clients: int = 8
    single: int = 1
    texts: int = 8
    seconds: float = 4.0
    rounds: int = 3
    epochs: int = 4


@dataclass(frozen=True)
class PairFigures:
    """What was measured of one pair."""

    name: str
    precisions: Pair
    alone: Round
    """Without the tenant on one runtime."""
    together: Round
    single_on: str
    own: Difference
    """Of answers to the tasks' own texts."""
    foreign: Difference
    """Of answers to the texts of another task."""


def run_mixed_pools(out: Path, plan: MixedPoolsPlan) -> str:
    """Measure ``plan``, write ``mixed-pools.json`` under ``out``, and return the tables."""
    with TemporaryDirectory(prefix="hmi-mixed-pools-") as name:
        figures, validation = measure_pools(plan, Path(name))
    results.write_json(
        out / "mixed-pools.json",
        plan=asdict(plan) | {"data": str(plan.data)},
        validation=validation,
        pairs=[asdict(one) for one in figures],
    )
    return _report(figures, validation)


def measure_pools(plan: MixedPoolsPlan, folder: Path) -> tuple[list[PairFigures], dict[str, float]]:
    """Return the figures of every pair, and the accuracy of the adapters on validation rows."""
    (folder / "base").mkdir()
    base = open_base(plan.base, folder / "base")
    population = make_population(base, plan.data, folder, epochs=plan.epochs)
    tasks = population.tasks
    with ExitStack() as stack:
        pools: list[Pool] = []
        for number, pair in enumerate(plan.pairs):
            pool = stack.enter_context(running_pool(folder / f"pool-{number}", population, pair))
            log.info("%s is ready; the tenant on one is on %s", pool.name, pool.single_on.precision)
            pools.append(pool)
        # Before the load: it also warms up what compiles code for shapes.
        own = [compare(pool, tasks, foreign=False) for pool in pools]
        log.info("answers to the tasks' own texts are compared")
        foreign = [compare(pool, tasks, foreign=True) for pool in pools]
        alone: list[list[Round]] = [[] for _ in pools]
        together: list[list[Round]] = [[] for _ in pools]
        log.info("%d pools are ready to be measured", len(pools))
        for _ in range(plan.rounds):
            for place, pool in enumerate(pools):
                for rounds, single in ((alone[place], 0), (together[place], plan.single)):
                    rounds.append(
                        measure(
                            pool,
                            tasks,
                            clients=plan.clients,
                            single=single,
                            texts=plan.texts,
                            seconds=plan.seconds,
                        )
                    )
        figures = [
            PairFigures(
                pool.name,
                plan.pairs[place],
                median_round(alone[place]),
                median_round(together[place]),
                pool.single_on.precision,
                own[place],
                foreign[place],
            )
            for place, pool in enumerate(pools)
        ]
    return figures, {task.name: task.validation for task in tasks}


def _report(figures: Sequence[PairFigures], validation: dict[str, float]) -> str:
    served = results.table(
        {
            "pool": one.name,
            "texts a second": f"{one.alone.spread.texts_a_second:.0f}",
            "p50 ms": f"{one.alone.spread.p50:.1f}",
            "p99 ms": f"{one.alone.spread.p99:.1f}",
            "requests by runtime": " : ".join(f"{share:.0%}" for share in one.alone.shares),
        }
        for one in figures
    )
    placed = results.table(
        {
            "pool": one.name,
            "on one: runtime": one.single_on,
            "p50 ms": f"{one.together.single.p50:.1f}",
            "p99 ms": f"{one.together.single.p99:.1f}",
            "on both: p50 ms": f"{one.together.spread.p50:.1f}",
            "on both: p99 ms": f"{one.together.spread.p99:.1f}",
            "its requests by runtime": " : ".join(f"{share:.0%}" for share in one.together.shares),
        }
        for one in figures
        if one.together.single is not None
    )
    answers = results.table(
        {
            "pool": one.name,
            "texts": texts,
            "answers": found.answers,
            "other labels": found.other_labels,
            "largest difference of a probability": f"{found.largest:.1e}",
            "largest margin of an other label": f"{found.largest_margin:.3f}",
        }
        for one in figures
        for texts, found in (("the task's own", one.own), ("of another task", one.foreign))
    )
    accuracy = ", ".join(f"{name} {value:.2f}" for name, value in validation.items())
    return f"{served}\n\n{placed}\n\n{answers}\n\nAccuracy on validation rows: {accuracy}."
