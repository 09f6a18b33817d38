"""Mending a cut: a few more epochs for the low-rank factors alone, where the cut itself lost something.

The best approximation of a matrix (``adapters/compress.py``) is not the best model of its rank: the factors
go on from it and learn from the same lessons, while biases and norms stay as they were tuned.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from hmi_api.task_adapter import Metric
from hmi_runtime.adapters.heads import HeadModule
from hmi_runtime.adapters.lora import LoraLinear, add_lora, export_lora
from hmi_runtime.adapters.weights import LayerAdapter
from hmi_runtime.base import MATRICES, NORMS
from hmi_runtime.model import UpperLayers
from hmi_runtime.training.tuning import Lessons, TaskModel, TaskRows, Tuning, tune

SHARE = 3
"""One epoch of mending for so many of tuning."""
RATE = 0.1
"""The peak rate, as a share of tuning's: what was found is not to be left again."""


def mend(
    upper: UpperLayers,
    cut: Mapping[int, LayerAdapter],
    head: HeadModule,
    lessons: Lessons,
    validation: TaskRows,
    config: Tuning,
    metric: Metric,
    *,
    folder: Path,
    checkpoint_seconds: float = 30.0,
) -> tuple[dict[int, LayerAdapter], HeadModule]:
    """Return ``cut`` with factors that have learnt on, and the head with them.

    ``upper`` and ``head`` are changed in place: give copies. ``config`` is what the uncut layers had.
    """
    rank = next(matrix.rank for layer in cut.values() for matrix in layer.lora.values())
    add_lora(upper, rank)
    with torch.no_grad():
        for index, layer in enumerate(upper.layers, start=upper.split):
            _put(layer, cut[index])
    folder.mkdir(parents=True, exist_ok=True)
    tune(
        TaskModel(upper, head),
        lessons,
        validation,
        replace(
            config,
            epochs=max(1, config.epochs // SHARE),
            learning_rate=config.learning_rate * RATE,
        ),
        metric,
        folder=folder,
        checkpoint_seconds=checkpoint_seconds,
    )
    factors = export_lora(upper)
    return {index: replace(layer, lora=factors[index].lora) for index, layer in cut.items()}, head


def _put(layer: torch.nn.Module, adapter: LayerAdapter) -> None:
    for name in MATRICES:
        module = layer.get_submodule(name)
        if not isinstance(module, LoraLinear):
            raise TypeError(f"{name} has no factors; put LoRA on it first")
        module.a.copy_(adapter.lora[name].a)
        module.b.copy_(adapter.lora[name].b)
        module.frozen.bias.copy_(adapter.bias[name])
    for name in NORMS:
        weight, bias = adapter.norms[name]
        layer.get_parameter(f"{name}.weight").copy_(weight)
        layer.get_parameter(f"{name}.bias").copy_(bias)
