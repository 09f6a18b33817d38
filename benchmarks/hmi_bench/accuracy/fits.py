"""Domains' layers and adapters for comparisons, trained by the product's own code."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hmi_api.resources.domain import DomainTraining
from hmi_api.resources.task_adapter import AdapterTraining, Method, Metric
from hmi_bench.accuracy.tasks import Task
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.source import BaseModel
from hmi_runtime.training.adapter_training import adapter_logits, task_dataset, train_adapter
from hmi_runtime.training.backbone import Backbone, BatchFunction
from hmi_runtime.training.distillation import distill
from hmi_runtime.training.fine_tuning import TaskDataset, score
from hmi_runtime.training.precision import StepPrecision
from hmi_runtime.training.token_dataset import TokenDataset

LAYERS_FOLDER = "layers"
"""Part of the work folder in which ``trained_layers`` keeps the layers."""


@dataclass(frozen=True)
class Answers:
    """A model's answers to R test rows: mean loss, and labels by their numbers."""

    loss: float
    predicted: NDArray[np.int64]  # (R,)
    right: NDArray[np.bool_]  # (R,)

    @property
    def accuracy(self) -> float:
        """0 to 1."""
        return float(self.right.mean())


@dataclass(frozen=True)
class Fitted:
    """The answers of an adapter as it is stored, and of the fine-tuned layers that it was compressed from."""

    stored: Answers
    tuned: Answers
    rank: int


def trained_layers(
    base: BaseModel,
    texts: list[str],
    work: Path,
    training: DomainTraining,
    precision: StepPrecision,
    *,
    bridge_heads: int = 4,
    parent: Path | None = None,
) -> DomainLayers:
    """Return the layers in ``work``; train them on ``texts`` first if it has none.

    They start from the layers in ``parent``, another such folder; without one from the base model's.
    """
    saved = work / LAYERS_FOLDER
    encoder = base.encoder()
    if not saved.is_dir():
        if parent is not None:
            layers = DomainLayers.load(parent / LAYERS_FOLDER, encoder)
        else:
            layers = DomainLayers.from_encoder(
                encoder,
                base.config.layers // 2,
                bridge_heads=bridge_heads,
                bridge_head_size=24,
                seed=training.seed,
            )
        distill(
            encoder,
            layers,
            TokenDataset.write(work / "corpus", texts, base.tokenizer, training.max_length),
            training,
            checkpoint_path=work / "distillation.safetensors",
            fresh=parent is None,
            precision=precision,
        )
        part = work / f"{LAYERS_FOLDER}.part"
        part.mkdir(exist_ok=True)
        layers.save(part)
        part.rename(saved)
    return DomainLayers.load(saved, encoder)


def fit(
    backbone: Backbone,
    task: Task,
    work: Path,
    training: AdapterTraining,
    precision: StepPrecision,
    unlabelled: Sequence[str] = (),
    rank: int | None = None,
) -> Fitted:
    """Train an adapter on a sequence task's training rows and test it on its test rows.

    A teacher, if ``training`` has one, labels ``unlabelled`` too. Compression chooses a ``rank`` of None.
    """
    trained = train_adapter(
        backbone,
        task.train,
        task.validation,
        work,
        labels=task.labels,
        method=Method(size=rank),
        training=training,
        unlabelled=unlabelled,
        precision=precision,
    )
    rows = task_dataset(backbone, task.test, task.labels, training.max_length, work / "features")
    served = adapter_logits(backbone.upper(), trained.weights.as_stored())
    return Fitted(
        _answers(served, rows), _answers(trained.tuned or served, rows), int(trained.metrics["rank"])
    )


def _answers(logits: BatchFunction, rows: TaskDataset) -> Answers:
    found = score(logits, rows, Metric.ACCURACY)
    predicted = np.concatenate(found.predicted)
    return Answers(
        found.loss, predicted, predicted == rows.examples.targets_of(range(len(predicted))).numpy()
    )
