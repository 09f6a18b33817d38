"""Learning from a teacher: a whole model is fine-tuned on the task, and the adapter imitates what it says.

The adapter stands on lower layers that it cannot change, so it learns less from the same labels than a whole
model does. What a whole model has learnt from them can be asked of any text, and imitated there
(Hinton et al., "Distilling the knowledge in a neural network", 2015): unlabelled texts of the domain do.
Imitation is the divergence KL(teacher || adapter) over a row's labels, or over those of each of its tokens.
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
from hmi_runtime.training.descent import Progress
from hmi_runtime.training.examples import Examples, rows_digest
from hmi_runtime.training.features import FeatureFile, to_half
from hmi_runtime.training.foundation import Foundation
from hmi_runtime.training.spool import pad_rows, text_fraction
from hmi_runtime.training.tuning import Logits, Numbers, TaskModel, TaskRows, Tuning, task_loss, tune

TEMPERATURE = 2.0
"""Logits are divided by it on both sides, so that what the teacher holds for less likely counts too."""
LABELS_SHARE = 0.5
"""How much the labels themselves count beside imitation, where a row has any."""

_ROWS_AT_ONCE = 64

Ids = Sequence[NDArray[np.int64]]
"""Rows of token ids, R of (T,)."""


@dataclass(frozen=True)
class TokenRows:
    """Rows as a whole model is given them."""

    ids: Ids
    pad_id: int

    def batch(self, numbers: Numbers) -> tuple[Tensor, Tensor]:
        """Return ids (B, T) int64, padded, and mask (B, T) bool."""
        return pad_rows([self.ids[int(number)] for number in numbers], self.pad_id)


@dataclass(frozen=True)
class SoftTargets:
    """A teacher's logits for numbered rows, on disk in float16."""

    values: NDArray[np.float16]  # (N, n), a row's tokens one after another; or (R, n), one a row
    offsets: NDArray[np.int64]  # (R + 1,)
    per_token: bool

    @classmethod
    def write(cls, path: Path, rows: TokenRows, logits_of: Logits, labels: int, *, per_token: bool) -> None:
        """Ask the teacher of every row; ``path`` appears when all are there."""
        offsets = _offsets(rows.ids, per_token=per_token)
        part = path.with_suffix(".part")
        values = np.memmap(part, np.float16, "w+", shape=(int(offsets[-1]), labels))
        order = np.argsort([len(row) for row in rows.ids], kind="stable")
        with torch.no_grad():
            for start in range(0, len(order), _ROWS_AT_ONCE):
                numbers = order[start : start + _ROWS_AT_ONCE]
                logits = to_half(logits_of(*rows.batch(numbers)))  # (B, n) or (B, T, n)
                for place, number in enumerate(numbers):
                    begin, end = offsets[number], offsets[number + 1]
                    values[begin:end] = logits[place, : end - begin] if per_token else logits[place]
        values.flush()
        part.replace(path)

    @classmethod
    def open(cls, path: Path, ids: Ids, labels: int, *, per_token: bool) -> "SoftTargets":
        """Map what ``write`` finished for the same rows."""
        offsets = _offsets(ids, per_token=per_token)
        return cls(np.memmap(path, np.float16, "r", shape=(int(offsets[-1]), labels)), offsets, per_token)

    def of(self, numbers: Numbers) -> Tensor:
        """Return float32 logits, (B, n), or (B, T, n) with zeros on padding."""
        rows = [self.values[self.offsets[int(n)] : self.offsets[int(n) + 1]] for n in numbers]
        logits = torch.zeros(len(rows), max(map(len, rows)), self.values.shape[1])  # (B, T, n); T is 1 a row
        for place, row in enumerate(rows):
            logits[place, : len(row)] = torch.from_numpy(row.astype(np.float32))
        return logits if self.per_token else logits[:, 0]


@dataclass(frozen=True)
class TaughtRows:
    """Lessons of a teacher: the labelled rows, and after them unlabelled ones."""

    features: FeatureFile
    labelled: Examples
    soft: SoftTargets

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every row, (R,)."""
        return np.diff(self.features.offsets)

    def batch(self, numbers: Numbers) -> tuple[Tensor, Tensor]:
        """Return representations (B, T, D) and mask (B, T) bool."""
        return self.features.batch(numbers)

    def loss(self, logits: Tensor, numbers: Numbers) -> Tensor:
        """Return imitation and, of labelled rows, their cross entropy; ``logits`` (B, n) or (B, T, n)."""
        lengths = torch.from_numpy(self.lengths[np.asarray(numbers)])  # (B,)
        loss = imitation(logits, self.soft.of(numbers), lengths)
        places = [place for place, number in enumerate(numbers) if number < len(self.labelled)]
        if not places:
            return loss
        targets = self.labelled.targets_of([int(numbers[place]) for place in places])  # (L,) or (L, T')
        ours = logits[places][:, : targets.shape[1]] if self.labelled.is_token else logits[places]
        return loss + LABELS_SHARE * len(places) / len(lengths) * task_loss(ours, targets)


def imitation(ours: Tensor, theirs: Tensor, lengths: Tensor) -> Tensor:
    """Return KL(theirs || ours) of logits (B, n) or (B, T, n), a mean over rows or their tokens.

    Both are taken at ``TEMPERATURE``, whose square keeps the gradient's size. ``lengths`` (B,) int64 says
    where padding begins.
    """
    a, b = ((logits / TEMPERATURE).log_softmax(-1) for logits in (ours, theirs))
    divergence = functional.kl_div(a, b, reduction="none", log_target=True).sum(-1)  # (B,) or (B, T)
    divergence = divergence * TEMPERATURE**2
    if divergence.ndim == 1:
        return divergence.mean()
    real = torch.arange(divergence.shape[1]) < lengths[:, None]  # (B, T)
    return (divergence * real).sum() / real.sum()


def draw(texts: Iterable[str], rows: int, *, without: Collection[str] = ()) -> list[str]:
    """Return at most ``rows`` of ``texts``, each once, the same ones whatever order they come in.

    Holds twice as many at any time. None of ``without`` is among them.
    """
    chosen: dict[str, float] = {}
    for text in texts:
        if text not in without:
            chosen[text] = text_fraction(text)
        if len(chosen) > 2 * rows:
            chosen = _least(chosen, rows)
    return list(_least(chosen, rows))


def teach(
    foundation: Foundation,
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
    progress: Progress = lambda step, steps, metrics: None,
) -> TaughtRows:
    """Tune a whole model on ``train`` and return what it says of those rows and of ``unlabelled``.

    Its best epoch on ``validation`` is asked. ``teacher_dir`` keeps its answers, which fits of the same task
    may share, and its checkpoints until then; ``features_dir`` the rows' representations. What is there is
    not done again.
    """
    base = foundation.base
    length = min(training.max_length, base.config.positions)
    texts = base.tokenizer.encode(unlabelled, length) if unlabelled else []
    ids = [*train.ids, *(np.array(encoding.ids, np.int64) for encoding in texts)]
    rows, labels = TokenRows(ids, base.config.pad_id), len(train.labels)
    said, tuning = teacher_dir / f"said-{rows_digest(None, ids)}.f16", teacher_dir / "tuning"
    if not said.is_file():
        tuning.mkdir(parents=True, exist_ok=True)
        head = HeadModule(base.config.width, labels, train.task, seed=training.seed)
        model = TaskModel(base.encoder().requires_grad_(True), head)
        tune(
            model,
            TaskRows(rows, train),
            TaskRows(TokenRows(validation.ids, rows.pad_id), validation),
            Tuning(teacher.epochs, training.batch_size, teacher.learning_rate, training.seed),
            metric,
            folder=tuning,
            checkpoint_seconds=checkpoint_seconds,
            progress=progress,
        )
        SoftTargets.write(said, rows, model, labels, per_token=train.is_token)
    if tuning.exists():  # four times the model's size, and nobody asks it again
        shutil.rmtree(tuning)
    features = foundation.features(
        ids, features_dir / f"taught-{rows_digest(foundation.layers_digest, ids)}.f16"
    )
    return TaughtRows(features, train, SoftTargets.open(said, ids, labels, per_token=train.is_token))


def _least(chosen: dict[str, float], rows: int) -> dict[str, float]:
    return dict(sorted(chosen.items(), key=lambda item: item[1])[:rows])


def _offsets(ids: Ids, *, per_token: bool) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum([len(row) if per_token else 1 for row in ids])]).astype(np.int64)
