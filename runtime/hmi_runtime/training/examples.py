"""A task's rows as token ids and targets, and the metrics of predictions for them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmi_api.resources.task_adapter import Metric, TaskType
from hmi_api.tag_schemes import OUTSIDE, TagScheme
from hmi_runtime.models.tokenizer import Encoding, Tokenizer
from hmi_runtime.training.labelled_data import LabelledRows, Rows, TaggedRows
from hmi_runtime.training.metrics import accuracy, entity_f1, macro_f1
from hmi_runtime.training.token_dataset import RowIndices, TokenRows

IGNORED = -100
"""Target of tokens that are not scored: special tokens, and all but the first token of a word."""


@dataclass(frozen=True)
class Examples:
    """Tokenised rows of one task.

    A sequence task has one target a row. A token task has one a token: the word's tag for the first token of
    a word, ``IGNORED`` for the others.
    """

    ids: Sequence[NDArray[np.int64]]  # R of (T,)
    targets: Sequence[NDArray[np.int64]]  # R of (1,) or (T,)
    rows: Rows
    labels: Sequence[str]
    words: Sequence[NDArray[np.int64]] = ()  # token tasks: R of (W',), the words with a target

    @property
    def is_token(self) -> bool:
        """Whether it is a token task."""
        return isinstance(self.rows, TaggedRows)

    @property
    def task(self) -> TaskType:
        """The task's type."""
        return TaskType.TOKEN_CLASSIFICATION if self.is_token else TaskType.SEQUENCE_CLASSIFICATION

    @property
    def tag_scheme(self) -> TagScheme | None:
        """The scheme of a token task's tags; None for a sequence task."""
        return self.rows.scheme if isinstance(self.rows, TaggedRows) else None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every row, (R,)."""
        return np.array([len(row) for row in self.ids], np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def digest(self, layers_digest: str | None = None) -> str:
        """Return a digest of the rows and their targets; see ``rows_digest``."""
        return rows_digest(layers_digest, self.ids, self.targets)

    def targets_of(self, numbers: RowIndices) -> Tensor:
        """Return targets (B,) of a sequence task, (B, T) of a token task, padded with ``IGNORED``."""
        chosen = [self.targets[int(number)] for number in numbers]
        padded = torch.full((len(chosen), max(len(row) for row in chosen)), IGNORED)  # (B, T) or (B, 1)
        for index, row in enumerate(chosen):
            padded[index, : len(row)] = torch.from_numpy(row)
        return padded if self.is_token else padded[:, 0]

    def score(self, predicted: Sequence[NDArray[np.int64]], metric: Metric) -> float:
        """Return a metric of predicted label numbers, shaped like ``targets``.

        A word without a token counts as ``O``: it was cut off at the length limit, or the tokeniser ignores
        it.
        """
        if isinstance(self.rows, LabelledRows):
            guesses = [self.labels[int(row[0])] for row in predicted]
            truth: Sequence[str] = self.rows.labels
            return accuracy(truth, guesses) if metric is Metric.ACCURACY else macro_f1(truth, guesses)
        tags = [self._tags(number, row) for number, row in enumerate(predicted)]
        if metric is Metric.ENTITY_F1:
            return entity_f1(self.rows.tags, tags, self.rows.scheme)
        words = [tag for row in self.rows.tags for tag in row], [tag for row in tags for tag in row]
        return accuracy(*words) if metric is Metric.ACCURACY else macro_f1(*words)

    def agreement(self, ours: Sequence[NDArray[np.int64]], theirs: Sequence[NDArray[np.int64]]) -> float:
        """Return how often two predictions of all rows, shaped like ``targets``, agree: 0 to 1.

        Counted are all rows, or the scored tokens for which at least one prediction is not ``O``. Most tokens
        are ``O``, and two models seldom differ there.
        """
        scored = [targets != IGNORED for targets in self.targets]
        a = np.concatenate([row[seen] for row, seen in zip(ours, scored, strict=True)])  # (N,)
        b = np.concatenate([row[seen] for row, seen in zip(theirs, scored, strict=True)])  # (N,)
        if self.is_token and OUTSIDE in self.labels:
            outside = list(self.labels).index(OUTSIDE)
            counted = (a != outside) | (b != outside)  # (N,)
            a, b = a[counted], b[counted]
        return float((a == b).mean()) if len(a) else 1.0

    def _tags(self, number: int, predicted: NDArray[np.int64]) -> list[str]:
        """Return a tag for each word of row ``number``; ``predicted`` (T,) are label numbers."""
        tags = [OUTSIDE] * len(self.rows.tags[number]) if isinstance(self.rows, TaggedRows) else []
        scored = predicted[self.targets[number] != IGNORED]  # (W',)
        for word, label in zip(self.words[number], scored, strict=True):
            tags[int(word)] = self.labels[int(label)]
        return tags


def default_metric(task: TaskType) -> Metric:
    """Return the metric of a task without a gate."""
    return Metric.ENTITY_F1 if task is TaskType.TOKEN_CLASSIFICATION else Metric.ACCURACY


def make_examples(rows: Rows, labels: Sequence[str], tokenizer: Tokenizer, max_length: int) -> Examples:
    """Tokenise ``rows``, whose labels must all be among ``labels``."""
    number = {label: index for index, label in enumerate(labels)}
    if isinstance(rows, LabelledRows):
        encodings = tokenizer.encode(rows.texts, max_length)
        targets = [np.array([number[label]]) for label in rows.labels]
        return Examples(_ids(encodings), targets, rows, labels)
    encodings = tokenizer.encode_words(rows.words, max_length)
    targets, words = [], []
    for encoding, tags in zip(encodings, rows.tags, strict=True):
        first = encoding.first_tokens()
        row = np.full(len(encoding.ids), IGNORED, np.int64)
        for place, word in first:
            row[place] = number[tags[word]]
        targets.append(row)
        words.append(np.array([word for _, word in first], np.int64))
    return Examples(_ids(encodings), targets, rows, labels, words)


def _ids(encodings: Sequence[Encoding]) -> list[NDArray[np.int64]]:
    return [np.array(encoding.ids, np.int64) for encoding in encodings]


def rows_digest(layers_digest: str | None, ids: TokenRows, *more: TokenRows) -> str:
    """Return 16 digits that depend on the rows' content; they name the files computed from the rows.

    ``more`` are further arrays of each row; ``layers_digest`` names the layers that the files depend on.
    """
    digest = hashlib.sha256((layers_digest or "").encode())
    for row in zip(ids, *more, strict=True):
        digest.update(len(row[0]).to_bytes(8, "big"))
        for values in row:
            digest.update(values.tobytes())
    return digest.hexdigest()[:16]
