"""Training with a teacher: a whole model is fine-tuned, and the adapter learns its soft labels.

An adapter cannot change the lower layers, so it learns less from the same labels than a whole model does. A
fine-tuned whole model can label any text, and the adapter is trained on these soft labels (Hinton et al.,
"Distilling the knowledge in a neural network", 2015), also of unlabelled texts of the domain. The loss is
KL(teacher || adapter), over the labels of a row or of each of its tokens.
"""

import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hmi_api.resources.task_adapter import AdapterTraining, Metric, Teacher
from hmi_runtime.adapters.heads import HeadModule
from hmi_runtime.training.backbone import Backbone, RowFile
from hmi_runtime.training.examples import Examples, rows_digest
from hmi_runtime.training.fine_tuning import TaskDataset, TaskModel, cross_entropy, fine_tune
from hmi_runtime.training.optim import Progress
from hmi_runtime.training.precision import FLOAT32, StepPrecision
from hmi_runtime.training.token_dataset import RowIndices, TokenRows, hash_fraction, pad_rows

TEMPERATURE = 2.0
"""Divides the logits of both models, so that less likely labels have weight too."""
HARD_LABEL_WEIGHT = 0.5
"""Weight of the cross entropy to the labels, relative to the soft-label loss, for labelled rows."""


@dataclass(frozen=True)
class TokenInputs:
    """Token ids of rows: the inputs of a whole model."""

    ids: TokenRows
    pad_id: int

    def batch(self, numbers: RowIndices) -> tuple[Tensor, Tensor]:
        """Return ids (B, T) int64, padded, and mask (B, T) bool."""
        return pad_rows([self.ids[int(number)] for number in numbers], self.pad_id)


@dataclass(frozen=True)
class SoftLabelDataset:
    """Training rows with a teacher's soft labels: first the labelled rows, then unlabelled ones."""

    features: RowFile
    labelled: Examples
    soft: RowFile

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every row, (R,)."""
        return np.diff(self.features.offsets)

    def batch(self, numbers: RowIndices) -> tuple[Tensor, Tensor]:
        """Return features (B, T, D) and mask (B, T) bool."""
        return self.features.batch(numbers)

    def soft_labels(self, numbers: RowIndices) -> Tensor:
        """Return the teacher's logits, (B, n), or (B, T, n) with zeros on padding."""
        logits, _ = self.soft.batch(numbers)
        return logits if self.labelled.is_token else logits[:, 0]

    def loss(self, logits: Tensor, numbers: RowIndices) -> Tensor:
        """Return the soft-label loss and, of labelled rows, cross entropy; ``logits`` (B, n) or (B, T, n)."""
        lengths = torch.from_numpy(self.lengths[np.asarray(numbers)])  # (B,)
        loss = soft_label_loss(logits, self.soft_labels(numbers), lengths)
        places = [place for place, number in enumerate(numbers) if number < len(self.labelled)]
        if not places:
            return loss
        targets = self.labelled.targets_of([int(numbers[place]) for place in places])  # (L,) or (L, T')
        ours = logits[places][:, : targets.shape[1]] if self.labelled.is_token else logits[places]
        return loss + HARD_LABEL_WEIGHT * len(places) / len(lengths) * cross_entropy(ours, targets)


def soft_label_loss(ours: Tensor, theirs: Tensor, lengths: Tensor) -> Tensor:
    """Return KL(theirs || ours) of logits (B, n) or (B, T, n), a mean over rows or their tokens.

    Both are divided by ``TEMPERATURE``; its square restores the scale of the gradient. ``lengths`` (B,) int64
    are the rows' tokens without padding.
    """
    a, b = ((logits / TEMPERATURE).log_softmax(-1) for logits in (ours, theirs))
    divergence = functional.kl_div(a, b, reduction="none", log_target=True).sum(-1)  # (B,) or (B, T)
    divergence = divergence * TEMPERATURE**2
    if divergence.ndim == 1:
        return divergence.mean()
    real = torch.arange(divergence.shape[1]) < lengths[:, None]  # (B, T)
    return (divergence * real).sum() / real.sum()


def sample_texts(texts: Iterable[str], rows: int, *, without: Collection[str] = ()) -> list[str]:
    """Return at most ``rows`` distinct ``texts``, none of ``without``; the same ones in any order.

    At most twice as many are in memory.
    """
    chosen: dict[str, float] = {}
    for text in texts:
        if text not in without:
            chosen[text] = hash_fraction(text)
        if len(chosen) > 2 * rows:
            chosen = _lowest(chosen, rows)
    return list(_lowest(chosen, rows))


def label_with_teacher(
    backbone: Backbone,
    train: Examples,
    validation: Examples,
    unlabelled: Sequence[str],
    training: AdapterTraining,
    teacher: Teacher,
    metric: Metric,
    *,
    teacher_dir: Path,
    features_dir: Path,
    checkpoint_seconds: float = 30.0,
    precision: StepPrecision = FLOAT32,
    progress: Progress = lambda step, steps, metrics: None,
) -> SoftLabelDataset:
    """Fine-tune a whole model on ``train``; return its soft labels for those rows and for ``unlabelled``.

    They are those of the best epoch on ``validation``. ``teacher_dir`` contains the checkpoints and then the
    soft labels, which trainings of the same task can share; ``features_dir`` contains the rows' features.
    Existing files are used again.
    """
    base = backbone.base
    length = min(training.max_length, base.config.positions)
    texts = base.tokenizer.encode(unlabelled, length) if unlabelled else []
    ids = [*train.ids, *(np.array(encoding.ids, np.int64) for encoding in texts)]
    labels, pad_id, per_token = len(train.labels), base.config.pad_id, train.is_token
    path, tuning = teacher_dir / f"said-{rows_digest(None, ids)}.f16", teacher_dir / "tuning"
    if not path.is_file():
        tuning.mkdir(parents=True, exist_ok=True)
        head = HeadModule(base.config.width, labels, train.task, seed=training.seed)
        model = TaskModel(base.encoder().requires_grad_(True), head)
        fine_tune(
            model,
            TaskDataset(TokenInputs(train.ids, pad_id), train),
            TaskDataset(TokenInputs(validation.ids, pad_id), validation),
            training.model_copy(update={"epochs": teacher.epochs, "learning_rate": teacher.learning_rate}),
            metric,
            folder=tuning,
            checkpoint_seconds=checkpoint_seconds,
            precision=precision,
            progress=progress,
        )
        RowFile.write(path, ids, model, width=labels, pad_id=pad_id, per_token=per_token)
    if tuning.exists():  # four times the model's size
        shutil.rmtree(tuning)
    features = backbone.features(ids, features_dir / f"taught-{rows_digest(backbone.layers_digest, ids)}.f16")
    return SoftLabelDataset(features, train, RowFile.open(path, ids, labels, per_token=per_token))


def _lowest(chosen: dict[str, float], rows: int) -> dict[str, float]:
    return dict(sorted(chosen.items(), key=lambda item: item[1])[:rows])
