"""Pairs of trainings that differ in one thing: the mean difference of accuracy, with a standard error."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, variance

from hmi_bench import results
from hmi_bench.accuracy.fits import Answers


@dataclass(frozen=True)
class Pair:
    """Two adapters of one task and seed on the same test rows: accuracies (0 to 1) and mean losses.

    ``only_first`` and ``only_second`` count the rows that only one of them gets right; ``other_predictions``
    those for which they predict different labels.
    """

    task: str
    seed: int
    rows: int
    first: float
    second: float
    first_loss: float
    second_loss: float
    only_first: int
    only_second: int
    other_predictions: int

    @classmethod
    def of(cls, task: str, seed: int, first: Answers, second: Answers) -> "Pair":
        """Compare two adapters that were tested on the same rows."""
        return cls(
            task,
            seed,
            len(first.right),
            first.accuracy,
            second.accuracy,
            first.loss,
            second.loss,
            int((first.right & ~second.right).sum()),
            int((second.right & ~first.right).sum()),
            int((first.predicted != second.predicted).sum()),
        )

    @property
    def points(self) -> float:
        """Second minus first, in points of accuracy."""
        return 100 * (self.second - self.first)

    @property
    def variance_by_rows(self) -> float:
        """The variance of ``points`` by the choice of rows: from those that only one gets right (McNemar)."""
        return 1e4 * (self.only_first + self.only_second) / self.rows**2


@dataclass(frozen=True)
class Difference:
    """Second minus first in points, a mean over tasks of means over pairs, and its standard error."""

    mean: float
    error: float


def difference(pairs: Sequence[Pair]) -> Difference:
    """Return the mean difference.

    The error is the larger of two estimates: from the rows that only one of a pair gets right, and from the
    spread of the tasks' means, or of the pairs of a single task.
    """
    tasks = list(_by_task(pairs).values())
    by_rows = (
        sum(mean(pair.variance_by_rows for pair in ones) / len(ones) for ones in tasks) / len(tasks) ** 2
    )
    means = [mean(pair.points for pair in ones) for ones in tasks]
    spread = means if len(tasks) > 1 else [pair.points for pair in pairs]
    by_spread = variance(spread) / len(spread) if len(spread) > 1 else 0.0
    return Difference(mean(means), math.sqrt(max(by_rows, by_spread)))


def pair_table(pairs: Sequence[Pair], first: str, second: str) -> str:
    """Return a table with a row for each task and one for their mean; ``first`` and ``second`` are titles."""
    everything = [*_by_task(pairs).items(), ("**mean over tasks**", list(pairs))]
    return results.table(_row(name, found, first, second) for name, found in everything)


def _row(name: str, pairs: Sequence[Pair], first: str, second: str) -> dict[str, object]:
    by_task, found = _by_task(pairs), difference(pairs)

    def over_tasks(figure: Callable[[Pair], float]) -> float:
        return mean(mean(figure(pair) for pair in ones) for ones in by_task.values())

    return {
        "task": name,
        "pairs": len(pairs),
        "test rows, all pairs": sum(pair.rows for pair in pairs),
        f"{first}, %": f"{100 * over_tasks(lambda pair: pair.first):.2f}",
        f"{second}, %": f"{100 * over_tasks(lambda pair: pair.second):.2f}",
        "difference, points": f"{found.mean:+.2f}",
        "standard error": f"{found.error:.2f}",
        "other predictions, %": f"{100 * over_tasks(lambda pair: pair.other_predictions / pair.rows):.2f}",
        "difference of the loss": f"{over_tasks(lambda pair: pair.second_loss - pair.first_loss):+.4f}",
    }


def _by_task(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    found: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        found[pair.task].append(pair)
    return dict(found)
