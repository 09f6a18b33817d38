"""Gradient-descent training of a body with a head on a task.

The same loop trains upper layers in full (which are compressed afterwards), adapters directly, and the whole
model of a teacher. The best epoch on validation rows is kept: highest metric, then lowest loss.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hmi_api.resources.task_adapter import AdapterTraining, Metric
from hmi_runtime.adapters.heads import HeadModule
from hmi_runtime.training.backbone import BatchFunction
from hmi_runtime.training.checkpoint import (
    Checkpoint,
    derived_seed,
    load_parameters,
    load_tensors,
    save_tensors,
    trained_parameters,
)
from hmi_runtime.training.examples import IGNORED, Examples
from hmi_runtime.training.optim import (
    BatchSampler,
    Progress,
    make_adamw,
    moving_average,
    optimizer_step,
    set_learning_rate,
)
from hmi_runtime.training.precision import FLOAT32, PRECISION_METRIC, StepPrecision
from hmi_runtime.training.token_dataset import RowIndices

WARMUP_SHARE = 0.1

_EVALUATION_BATCH = 64
_DROPOUT = 1  # distinguishes the seed of dropout from that of the batches


class ModelInputs(Protocol):
    """Inputs of a body: features or token ids of numbered rows."""

    def batch(self, numbers: RowIndices) -> tuple[Tensor, Tensor]:
        """Return (B, T, D) or (B, T), padded, and mask (B, T) bool."""


class TrainingSet(Protocol):
    """Rows to train on, with their loss."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every row, (R,)."""

    def batch(self, numbers: RowIndices) -> tuple[Tensor, Tensor]:
        """Return the body's inputs, (B, T, D) or (B, T), and mask (B, T) bool."""

    def loss(self, logits: Tensor, numbers: RowIndices) -> Tensor:
        """Return the loss, a scalar; ``logits`` (B, n) or (B, T, n)."""


@dataclass(frozen=True)
class TaskDataset:
    """Inputs and labels of a task's rows, for training or evaluation."""

    features: ModelInputs
    examples: Examples

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every row, (R,)."""
        return self.examples.lengths

    def batch(self, numbers: RowIndices) -> tuple[Tensor, Tensor]:
        """Return the body's inputs for these rows, and mask (B, T) bool."""
        return self.features.batch(numbers)

    def loss(self, logits: Tensor, numbers: RowIndices) -> Tensor:
        """Return the cross entropy to the labels; ``logits`` (B, n) or (B, T, n)."""
        return cross_entropy(logits, self.examples.targets_of(numbers))


@dataclass(frozen=True)
class Predictions:
    """Predictions for rows, in their order, with mean loss and metric."""

    predicted: list[NDArray[np.int64]]
    loss: float
    metric: float


BodyT = TypeVar("BodyT", bound=nn.Module)


class TaskModel(nn.Module, Generic[BodyT]):
    """A body that returns last hidden states (B, T, D), and a head.

    The body is the upper layers, with features (B, T, D) as inputs, or a whole encoder with token ids (B, T).
    """

    def __init__(self, body: BodyT, head: HeadModule) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, inputs: Tensor, mask: Tensor, precision: StepPrecision = FLOAT32) -> Tensor:
        """Return float32 logits, (B, n) or (B, T, n); ``precision`` is that of the body's products."""
        with precision.products():
            states = self.body(inputs, mask)  # (B, T, D)
        logits: Tensor = self.head(states.float(), mask)
        return logits


def fine_tune(
    model: TaskModel[Any],
    train: TrainingSet,
    validation: TaskDataset,
    training: AdapterTraining,
    metric: Metric,
    *,
    folder: Path,
    checkpoint_seconds: float = 30.0,
    precision: StepPrecision = FLOAT32,
    progress: Progress = lambda step, steps, metrics: None,
) -> dict[str, float]:
    """Train the parameters of ``model`` that require a gradient; load the best epoch's weights at the end.

    Returns that epoch, from 1, its metric on ``validation``, and the precision of the last steps in bits.
    Validation is in float32. Resumes from the checkpoint in ``folder``.
    """
    lengths = train.lengths
    order = BatchSampler(np.arange(len(lengths)), lengths, training.batch_size, training.seed)
    steps = training.epochs * order.steps_per_epoch
    warmup = max(1, math.ceil(steps * WARMUP_SHARE))
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    optimizer = make_adamw([(trained, training.learning_rate)])
    checkpoint = Checkpoint(
        folder / "tuning.safetensors", model, optimizer, checkpoint_seconds, precision=precision
    )
    best = _BestEpoch(folder / "best.safetensors", model)
    first, notes = checkpoint.restore()
    for step in range(first, steps):
        numbers = order.rows_of(step)
        set_learning_rate(optimizer, step, steps, warmup)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(training.seed, _DROPOUT, step))
            logits = model.train()(*train.batch(numbers), checkpoint.precision)
        loss = train.loss(logits, numbers)
        optimizer_step(loss, model, optimizer)
        notes["loss"] = moving_average(notes.get("loss"), loss.item())
        epoch, in_epoch = divmod(step + 1, order.steps_per_epoch)
        if in_epoch == 0:
            scored = score(model.eval(), validation, metric)
            notes["validation"] = scored.metric
            best.save_if_better(epoch, scored)
        checkpoint.save_when_due(step + 1, notes)
        progress(step + 1, steps, notes)
    model.eval()
    return {**best.restore(), PRECISION_METRIC: checkpoint.precision.bits}


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy over scored targets; 0 for a batch without any."""
    flat, wanted = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    total = functional.cross_entropy(flat, wanted, ignore_index=IGNORED, reduction="sum")
    return total / (wanted != IGNORED).sum().clamp_min(1)


def score(logits_of: BatchFunction, rows: TaskDataset, metric: Metric) -> Predictions:
    """Predict every row and compute loss and metric."""
    lengths = rows.examples.lengths
    order = np.argsort(lengths, kind="stable")
    predicted: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(order)
    loss = 0.0
    with torch.no_grad():
        for start in range(0, len(order), _EVALUATION_BATCH):
            numbers = order[start : start + _EVALUATION_BATCH]
            logits = logits_of(*rows.features.batch(numbers))
            loss += cross_entropy(logits, rows.examples.targets_of(numbers)).item() * len(numbers)
            best = logits.argmax(-1).numpy()  # (B,) or (B, T)
            for place, number in enumerate(numbers):
                row = best[place]
                predicted[number] = row[: lengths[number]] if rows.examples.is_token else row[None]
    return Predictions(predicted, loss / len(order), rows.examples.score(predicted, metric))


class _BestEpoch:
    """The trained parameters of the best epoch, in a file."""

    def __init__(self, path: Path, model: nn.Module) -> None:
        self._path = path
        self._model = model
        saved = load_tensors(path)
        self._record: dict[str, float] = json.loads(saved[1]["record"]) if saved else {}

    def save_if_better(self, epoch: int, scored: Predictions) -> None:
        """Save the model's parameters if it is better than the saved epoch."""
        known = self._record
        if known and (known["metric"], -known["loss"]) >= (scored.metric, -scored.loss):
            return
        self._record = {"epoch": epoch, "metric": scored.metric, "loss": scored.loss}
        save_tensors(self._path, trained_parameters(self._model), {"record": json.dumps(self._record)})

    def restore(self) -> dict[str, float]:
        """Load the saved parameters into the model; return epoch, metric and loss."""
        tensors, _ = load_tensors(self._path) or ({}, {})
        load_parameters(self._model, tensors)
        return self._record
