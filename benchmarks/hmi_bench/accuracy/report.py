"""The accuracy table: what each task loses, and where."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import mean

from hmi_bench import results
from hmi_bench.accuracy.study import Outcome, Preset, chosen

_HEADER = [
    "task",
    "full fine-tuning",
    "adapters, unsplit, no teacher",
    "hPLM, no bridge, no teacher",
    "hPLM, no teacher",
    "hPLM",
    "loss of the hPLM",
    "by freezing the lower layers",
    "by windows",
    "by the bridge (less than 0: it gives back)",
    "by learning from the teacher",
    "by the cut to a LoRA",
    "hPLM, int8 upper layers",
    "rank",
]
_LOSS = 5  # place of the loss among a row's columns


def write_report(outcomes: list[Outcome], preset: Preset, out: Path) -> str:
    """Write ``accuracy.json`` and ``accuracy.png`` under ``out`` and return the tables.

    Tasks are shown once full fine-tuning and the hPLM have run; what has not run yet is a dash. Figures
    are means over seeds, in per cent.
    """
    best = chosen(outcomes)
    figures = {task: row for task, row in _by_task(best).items() if {"full", "hplm"} <= row.keys()}
    rows = {task: _row(methods) for task, methods in figures.items()}
    means = [_mean(column) for column in zip(*rows.values(), strict=True)]
    results.write_json(
        out / "accuracy.json",
        preset=asdict(preset),
        chosen=[asdict(outcome) for outcome in best],
        mean_loss=means[_LOSS] if means else None,
    )
    if figures:
        series = {
            "full fine-tuning": [row["full"]["test"] for row in figures.values()],
            "hPLM": [row["hplm"]["test"] for row in figures.values()],
        }
        title = "Test accuracy, or F1 of whole entities"
        results.grouped_bars(out / "accuracy.png", title, "per cent", list(figures), series)
    shown = {**rows, "**mean**": means} if means else rows
    return results.table(_HEADER, [[task, *map(_cell, row)] for task, row in shown.items()])


def _by_task(outcomes: list[Outcome]) -> dict[str, dict[str, dict[str, float]]]:
    """Return task -> method -> its figures in per cent, means over seeds."""
    gathered: dict[str, dict[str, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    for outcome in outcomes:
        gathered[outcome.task][outcome.method].append(outcome)
    return {
        task: {
            method: {
                "test": 100 * mean(o.test for o in found),
                "whole": 100 * mean(o.detail.get("test_before_the_cut", o.test) for o in found),
                "int8": 100 * mean(o.detail.get("test_int8", o.test) for o in found),
                "rank": mean(o.detail.get("rank", 0.0) for o in found),
            }
            for method, found in methods.items()
        }
        for task, methods in gathered.items()
    }


def _row(methods: dict[str, dict[str, float]]) -> list[float | None]:
    """Return the columns of one task; the five parts of the loss add up to it."""
    full, hplm = methods["full"], methods["hplm"]
    between = [methods.get(name) for name in ("unsplit", "bridgeless", "untaught")]
    steps = [full["test"], *(_whole(method) for method in between), hplm["whole"], hplm["test"]]
    return [
        full["test"],
        *(method["test"] if method else None for method in between),
        hplm["test"],
        full["test"] - hplm["test"],
        *(
            before - after if before is not None and after is not None else None
            for before, after in pairwise(steps)
        ),
        hplm["int8"],
        hplm["rank"],
    ]


def _whole(method: dict[str, float] | None) -> float | None:
    """Return what a method tested before its cut to a LoRA, if it has run."""
    return method["whole"] if method else None


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return mean(present) if len(present) == len(values) else None


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
