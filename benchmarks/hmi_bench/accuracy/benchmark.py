"""Accuracy benchmark: every cell (task, method, learning rate, seed) is run once and kept in a file."""

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean

from hmi_api.internal.trainer import TrainingPrecision
from hmi_api.resources.task_adapter import TaskType
from hmi_bench import results
from hmi_bench.accuracy.full_fine_tuning import Recipe, evaluate, full_finetune
from hmi_bench.accuracy.hierarchical import Hierarchical
from hmi_bench.accuracy.tasks import Task, read_tasks
from hmi_runtime.models.source import load_base
from hmi_runtime.training.precision import step_precision

log = logging.getLogger(__name__)
METHODS = ("full", "unsplit", "bridgeless", "untaught", "hplm")
"""From full fine-tuning to the hPLM, each one step closer to it."""


@dataclass(frozen=True)
class Preset:
    """How much is run: rows, epochs, learning rates to choose from, distillation steps, seeds.

    The hPLM's teacher labels ``unlabelled_rows`` texts; ``methods`` are run if none are named.
    """

    name: str
    train_rows: int
    test_rows: int
    epochs: int
    full_rates: tuple[float, ...]
    upper_rates: tuple[float, ...]
    distillation_steps: int
    unlabelled_rows: int
    seeds: tuple[int, ...] = (0,)
    methods: tuple[str, ...] = METHODS


PRESETS = {
    "quick": Preset("quick", 400, 300, 4, (3e-4,), (1e-3,), 150, 200, methods=("full", "hplm")),
    "standard": Preset("standard", 800, 500, 6, (1e-4, 3e-4), (3e-4, 1e-3), 800, 2400),
    "full": Preset(
        "full", 10_000, 10_000, 10, (5e-5, 1e-4, 3e-4), (1e-4, 3e-4, 1e-3), 1200, 10_000, (0, 1, 2)
    ),
}


@dataclass(frozen=True)
class Outcome:
    """Result of one cell; ``test`` is reported only for the rate that validation chose."""

    task: str
    domain: str
    method: str
    seed: int
    learning_rate: float
    best_epoch: int
    validation: float
    test: float
    seconds: float
    detail: dict[str, float] = field(default_factory=dict)


Method = Callable[[Task, Recipe, int], tuple[float, int, float, dict[str, float]]]
"""(task, recipe, seed) -> (validation metric, best epoch, test metric, detail)."""


def run_study(
    tasks: list[Task],
    methods: dict[str, Method],
    preset: Preset,
    folder: Path,
    wanted: Callable[[Task, str], bool] = lambda task, method: True,
) -> list[Outcome]:
    """Run the wanted cells that are not in ``folder`` yet; return the outcomes of all cells in it.

    Every method's learning rate is chosen in the same way: all rates are tried on the smallest task of a type
    in a domain (the pilot), and the domain's other tasks of that type use the best one on validation rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    by_size = sorted(tasks, key=lambda task: sum(map(len, task.train.inputs())))
    pilots = {_kind(task): task.name for task in reversed(by_size)}
    for seed in preset.seeds:
        for task in by_size:
            for method, run in methods.items():
                rates = preset.full_rates if method == "full" else preset.upper_rates
                if pilots[_kind(task)] != task.name:
                    rates = _pilot_rate(outcomes, pilots[_kind(task)], method, seed)
                limited = task.limited(preset.train_rows, preset.test_rows, seed)
                for rate in rates:
                    path = folder / f"{task.name.replace('/', '.')}-{method}-{rate:g}-{seed}.json"
                    if path.is_file():
                        outcomes.append(Outcome(**json.loads(path.read_text())))
                    elif wanted(task, method):
                        outcomes.append(_run_cell(limited, method, run, rate, preset, seed, path))
    return outcomes


def _kind(task: Task) -> tuple[str, TaskType]:
    """Return the domain and type; tasks that have both in common share a learning rate."""
    return task.domain, task.type


def _run_cell(
    task: Task, method: str, run: Method, rate: float, preset: Preset, seed: int, path: Path
) -> Outcome:
    """Run a cell and write its outcome to ``path``."""
    started = time.monotonic()
    validation, epoch, test, detail = run(task, Recipe(rate, preset.epochs), seed)
    seconds = round(time.monotonic() - started, 1)
    outcome = Outcome(task.name, task.domain, method, seed, rate, epoch, validation, test, seconds, detail)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(asdict(outcome), indent=1))
    temporary.replace(path)
    log.info(
        "%s %s rate %g seed %d: validation %.4f, %.0f s", task.name, method, rate, seed, validation, seconds
    )
    return outcome


def _pilot_rate(outcomes: list[Outcome], pilot: str, method: str, seed: int) -> tuple[float, ...]:
    """Return the best rate on the pilot's validation rows; none if the pilot has not run."""
    tried = [o for o in outcomes if (o.task, o.method, o.seed) == (pilot, method, seed)]
    return (max(tried, key=lambda outcome: outcome.validation).learning_rate,) if tried else ()


def chosen(outcomes: list[Outcome]) -> list[Outcome]:
    """Return, for each task, method and seed, the outcome of the best rate on validation rows."""
    best: dict[tuple[str, str, int], Outcome] = {}
    for outcome in outcomes:
        key = (outcome.task, outcome.method, outcome.seed)
        if key not in best or outcome.validation > best[key].validation:
            best[key] = outcome
    return list(best.values())


_BETWEEN = {
    "unsplit": "adapters, unsplit, no teacher",
    "bridgeless": "hPLM, no bridge, no teacher",
    "untaught": "hPLM, no teacher",
}
_LOSS = "loss of the hPLM"
_PROBABILITY = "probability_changed_by_halving"
_PARTS_OF_LOSS = (
    "by freezing the lower layers",
    "by windows",
    "by the bridge (negative: a gain)",
    "by the teacher",
    "by compression to a LoRA",
)


def write_report(outcomes: list[Outcome], preset: Preset, out: Path) -> str:
    """Write ``accuracy.json`` and ``accuracy.png`` under ``out`` and return the tables.

    Tasks are shown once full fine-tuning and the hPLM have run; other missing figures are a dash. Figures are
    means over seeds, in per cent. A second table shows what half precision changes, for every adapter.
    """
    best = chosen(outcomes)
    figures = {task: row for task, row in _by_task(best).items() if {"full", "hplm"} <= row.keys()}
    rows = {task: _row(methods) for task, methods in figures.items()}
    columns = next(iter(rows.values()), {})
    means = {name: _mean([row[name] for row in rows.values()]) for name in columns}
    results.write_json(
        out / "accuracy.json",
        preset=asdict(preset),
        chosen=[asdict(outcome) for outcome in best],
        mean_loss=means.get(_LOSS),
    )
    halving = _halving_table(best)
    if not rows:
        return "No task has results of both full fine-tuning and the hPLM yet." + halving
    series = {
        "full fine-tuning": [row["full"]["test"] for row in figures.values()],
        "hPLM": [row["hplm"]["test"] for row in figures.values()],
    }
    title = "Test accuracy, or F1 of whole entities"
    results.grouped_bars(out / "accuracy.png", title, "per cent", list(figures), series)
    accuracies = results.table(
        {"task": task, **{name: _cell(value) for name, value in row.items()}}
        for task, row in {**rows, "**mean**": means}.items()
    )
    return accuracies + halving


def _halving_table(outcomes: list[Outcome]) -> str:
    """Return the table of what storing each adapter in half precision changes on test rows."""
    adapters = [outcome for outcome in outcomes if _PROBABILITY in outcome.detail]
    if not adapters:
        return ""
    return "\n\nAdapters as stored, compared with float32:\n\n" + results.table(
        {
            "task": outcome.task,
            "method": outcome.method,
            "kB": outcome.detail["stored_bytes"] / 1e3,
            "of float32": f"{outcome.detail['stored_bytes'] / outcome.detail['float32_bytes']:.3f}",
            "predictions": int(outcome.detail["predictions"]),
            "other predictions": int(outcome.detail["predictions_changed_by_halving"]),
            "largest change of a probability": f"{outcome.detail[_PROBABILITY]:.1e}",
        }
        for outcome in adapters
    )


def _by_task(outcomes: list[Outcome]) -> dict[str, dict[str, dict[str, float]]]:
    """Return task -> method -> figures in per cent, means over seeds."""
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


def _row(methods: dict[str, dict[str, float]]) -> dict[str, float | None]:
    """Return the columns of one task; the parts of the loss add up to the loss."""
    full, hplm = methods["full"], methods["hplm"]
    between = {title: methods.get(name) for name, title in _BETWEEN.items()}
    whole = [method["whole"] if method else None for method in between.values()]
    steps = [full["test"], *whole, hplm["whole"], hplm["test"]]
    losses = [b - a if b is not None and a is not None else None for b, a in pairwise(steps)]
    return {
        "full fine-tuning": full["test"],
        **{title: method["test"] if method else None for title, method in between.items()},
        "hPLM": hplm["test"],
        _LOSS: full["test"] - hplm["test"],
        **dict(zip(_PARTS_OF_LOSS, losses, strict=True)),
        "hPLM, int8 upper layers": hplm["int8"],
        "rank": hplm["rank"],
    }


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return mean(present) if len(present) == len(values) else None


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def run_accuracy(
    data: Path,
    out: Path,
    *,
    preset_name: str,
    base_uri: str,
    domains: Path | None,
    only_tasks: list[str],
    only_methods: list[str],
    training_precision: TrainingPrecision = "auto",
) -> str:
    """Run the missing cells of a preset's study on the tasks under ``data``; return the report's table.

    ``domains`` is a JSON file that maps task paths to domains. ``only_*`` limit the cells that are run now,
    so that several processes can share a study; the report includes all cells on file.
    ``training_precision`` is that of the training steps of all methods but full fine-tuning.
    """
    preset = PRESETS[preset_name]
    folder = out / f"accuracy-{preset.name}"
    tasks = read_tasks(data, json.loads(domains.read_text()) if domains else {})
    base = load_base(base_uri)
    hierarchical = Hierarchical(
        base,
        tasks,
        preset.distillation_steps,
        preset.unlabelled_rows,
        folder,
        step_precision(training_precision),
    )

    def full(task: Task, recipe: Recipe, seed: int) -> tuple[float, int, float, dict[str, float]]:
        metric, epoch, model = full_finetune(base, task, recipe, seed)
        return metric, epoch, evaluate(base, task, task.test, model, recipe.max_length), {}

    methods: dict[str, Method] = {
        "full": full,
        "unsplit": hierarchical.unsplit,
        "bridgeless": hierarchical.bridgeless,
        "untaught": hierarchical.untaught,
        "hplm": hierarchical.hplm,
    }

    def wanted(task: Task, method: str) -> bool:
        named = not only_tasks or any(task.name.startswith(prefix) for prefix in only_tasks)
        return named and method in (only_methods or preset.methods)

    outcomes = run_study(tasks, methods, preset, folder / "cells", wanted)
    return write_report(outcomes, preset, folder)
