"""Putting the study together: which tasks, which domains, which methods."""

import json
from pathlib import Path

from hmi_bench.accuracy.hierarchical import Hierarchical
from hmi_bench.accuracy.report import write_report
from hmi_bench.accuracy.study import PRESETS, Method, run_study
from hmi_bench.accuracy.tasks import Task, read_tasks
from hmi_bench.accuracy.tuning import Recipe, evaluate, full_finetune
from hmi_runtime.models import load_base


def run_accuracy(
    data: Path,
    out: Path,
    *,
    preset_name: str,
    base_uri: str,
    domains: Path | None,
    only_tasks: list[str],
    only_methods: list[str],
) -> str:
    """Run what is missing of a preset's study on the tasks under ``data``; return the report's table.

    ``domains`` is a JSON file that maps task paths to domains; ``only_*`` narrow what is run now, so that
    a study can be shared between processes: what is on file already is always reported.
    """
    preset = PRESETS[preset_name]
    folder = out / f"accuracy-{preset.name}"
    tasks = read_tasks(data, json.loads(domains.read_text()) if domains else {})
    base = load_base(base_uri)
    hierarchical = Hierarchical(base, tasks, preset.distillation_steps, preset.unlabelled_rows, folder)

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
