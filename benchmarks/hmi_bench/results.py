"""Writing a benchmark's results: JSON files, Markdown tables and plots."""

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""Instruction sets, by their names in /proc/cpuinfo, that decide which kernels are fast."""
_COLOURS = ["#6366f1", "#10b981", "#f97316", "#64748b", "#e11d48", "#0ea5e9"]


def machine() -> dict[str, Any]:
    """Describe the machine; figures of different machines cannot be compared."""
    described = {
        name.strip(): value.strip()
        for name, _, value in (
            line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line
        )
    }
    flags = set(described.get("flags", "").split())
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": described.get("model name", platform.processor()),
        "features": [feature for feature in FEATURES if feature in flags],
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_json(path: Path, **content: Any) -> None:
    """Write one benchmark's figures and the machine that they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **content}, indent=1) + "\n")


def table(rows: Iterable[Mapping[str, object]]) -> str:
    """Return a Markdown table of ``rows``, at least one, whose keys are the header.

    Numbers have three significant digits.
    """
    shown = list(rows)
    names = list(shown[0])
    lines = [names, ["---"] * len(names), *[[_cell(row[name]) for name in names] for row in shown]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bars(path: Path, title: str, unit: str, values: Mapping[str, float]) -> None:
    """Draw one horizontal bar for each name, the first on top."""
    with _axes(path, title, (9, 0.5 * len(values) + 1.4)) as axes:
        axes.barh(list(values), list(values.values()), color=[_colour(n) for n in range(len(values))])
        axes.invert_yaxis()
        for place, value in enumerate(values.values()):
            axes.text(value, place, f" {value:,.3g}", va="center")
        axes.set_xlabel(unit)
        axes.margins(x=0.12)


def grouped_bars(
    path: Path, title: str, unit: str, groups: Sequence[str], series: Mapping[str, Sequence[float]]
) -> None:
    """Draw one cluster of bars for each group, with one bar for each series."""
    with _axes(path, title, (max(8, 1.1 * len(groups)), 4.5)) as axes:
        width = 0.8 / len(series)
        for place, (name, values) in enumerate(series.items()):
            at = [group + width * place for group in range(len(groups))]
            axes.bar(at, values, width, label=name, color=_colour(place))
        axes.set_xticks([g + 0.4 - width / 2 for g in range(len(groups))], groups, rotation=25, ha="right")
        axes.set_ylabel(unit)
        axes.legend(frameon=False)


def lines(
    path: Path, title: str, x: str, y: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> None:
    """Draw one line for each series over a logarithmic x axis."""
    with _axes(path, title, (8, 4.2)) as axes:
        for place, (name, (xs, ys)) in enumerate(series.items()):
            axes.plot(xs, ys, marker="o", label=name, color=_colour(place))
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.legend(frameon=False)


@contextmanager
def _axes(path: Path, title: str, size: tuple[float, float]) -> Iterator[Any]:
    """Yield the axes of a new figure, and write the figure to ``path``."""
    import matplotlib as mpl  # noqa: PLC0415 - machines that draw nothing need not have it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=size, layout="constrained")
    yield axes
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
