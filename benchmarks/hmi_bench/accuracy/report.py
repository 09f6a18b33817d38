"""The accuracy table: what each task loses, and where."""

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from hmi_bench import results
from hmi_bench.accuracy.study import Outcome, Preset, chosen


def write_report(outcomes: list[Outcome], preset: Preset, out: Path) -> str:
    """Write ``accuracy.json`` and ``accuracy.png`` under ``out`` and return the tables.

    Only tasks for which every method has run are shown; figures are means over seeds, in per cent.
    """
    best = chosen(outcomes)
    figures = _by_task(best)
    complete = {task: row for task, row in figures.items() if {"full", "unsplit", "hplm"} <= row.keys()}
    rows = [[task, *_row(row)] for task, row in complete.items()]
    if rows:
        columns = list(zip(*(row[1:] for row in rows), strict=True))
        rows.append(["**mean**", *(mean(column) for column in columns)])
    results.write_json(
        out / "accuracy.json",
        preset=asdict(preset),
        chosen=[asdict(outcome) for outcome in best],
        mean_loss=rows[-1][4] if rows else None,
    )
    if complete:
        series = {
            "full fine-tuning": [row["full"]["test"] for row in complete.values()],
            "adapters, unsplit model": [row["unsplit"]["test"] for row in complete.values()],
            "hPLM": [row["hplm"]["test"] for row in complete.values()],
        }
        results.grouped_bars(
            out / "accuracy.png", "Test accuracy or entity F1", "per cent", list(complete), series
        )
    header = [
        "task",
        "full fine-tuning",
        "adapters, unsplit",
        "hPLM",
        "loss of the hPLM",
        "by freezing the lower layers",
        "by windows, after the bridge",
        "by the cut to a LoRA",
        "hPLM, int8 upper layers",
        "rank",
    ]
    return results.table(header, [[row[0], *(f"{value:.1f}" for value in row[1:])] for row in rows])


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


def _row(methods: dict[str, dict[str, float]]) -> list[float]:
    """Return the columns of one task; the three parts add up to the loss."""
    full, unsplit, hplm = methods["full"], methods["unsplit"], methods["hplm"]
    return [
        full["test"],
        unsplit["test"],
        hplm["test"],
        full["test"] - hplm["test"],
        full["test"] - unsplit["whole"],
        unsplit["whole"] - hplm["whole"],
        hplm["whole"] - hplm["test"],
        hplm["int8"],
        hplm["rank"],
    ]
