"""What a benchmark leaves behind: JSON for programs, a table for people, a plot for both."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

mpl.use("Agg")

from matplotlib import pyplot as plt

_COLOURS = ["#6366f1", "#10b981", "#f97316", "#64748b", "#e11d48", "#0ea5e9"]


def machine() -> dict[str, Any]:
    """Say what this ran on; figures from different machines are not to be compared."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": model,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_json(path: Path, **content: Any) -> None:
    """Write one benchmark's figures together with the machine they were taken on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **content}, indent=1) + "\n")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; numbers are written with three significant places."""
    lines = [list(header), ["---"] * len(header), *[[_cell(value) for value in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bars(path: Path, title: str, unit: str, values: Mapping[str, float]) -> None:
    """Draw one horizontal bar a name, the first on top."""
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(values) + 1.4), layout="constrained")
    names = list(values)
    axes.barh(names, list(values.values()), color=[_COLOURS[i % len(_COLOURS)] for i in range(len(names))])
    axes.invert_yaxis()
    for place, value in enumerate(values.values()):
        axes.text(value, place, f" {value:,.3g}", va="center")
    axes.set_title(title)
    axes.set_xlabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    _save(figure, path)


def grouped_bars(
    path: Path, title: str, unit: str, groups: Sequence[str], series: Mapping[str, Sequence[float]]
) -> None:
    """Draw one cluster of bars a group, one bar a series."""
    figure, axes = plt.subplots(figsize=(max(8, 1.1 * len(groups)), 4.5), layout="constrained")
    width = 0.8 / len(series)
    for place, (name, values) in enumerate(series.items()):
        at = [group + width * place for group in range(len(groups))]
        axes.bar(at, values, width, label=name, color=_COLOURS[place % len(_COLOURS)])
    axes.set_xticks([g + 0.4 - width / 2 for g in range(len(groups))], groups, rotation=25, ha="right")
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def lines(
    path: Path, title: str, x: str, y: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> None:
    """Draw one line a series over a logarithmic x axis."""
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for place, (name, (xs, ys)) in enumerate(series.items()):
        axes.plot(xs, ys, marker="o", label=name, color=_COLOURS[place % len(_COLOURS)])
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
