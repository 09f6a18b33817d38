"""Requests inside the pipeline: their texts, groups of rows with one text, and results of rows."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from hmi_api.errors import HmiError, InvalidInput, NotReady
from hmi_api.internal.inference import InferRow, RowError, RowResult, TokenLabel
from hmi_runtime.models.tokenizer import Encoding
from hmi_runtime.serving.loaded import LoadedAdapter

DEADLINE_REASON = "DeadlineExceeded"


class PendingRequest:
    """A request whose rows get their results one by one, from any thread; ``future`` gets all of them.

    ``on_row_done`` is called with the request after each row. Only adapters of ``tenant_id`` may answer; None
    allows all.
    """

    def __init__(
        self,
        rows: Sequence[InferRow],
        deadline: float,
        on_row_done: Callable[["PendingRequest"], None],
        tenant_id: str | None = None,
    ) -> None:
        self.rows = rows
        self.tenant_id = tenant_id
        self._on_row_done = on_row_done
        self.deadline = deadline
        self.future: Future[list[RowResult]] = Future()
        self._results: list[RowResult | None] = [None] * len(rows)
        self._remaining = len(rows)
        self._ended = False
        self._lock = threading.Lock()
        if not rows:
            self.future.set_result([])

    def is_abandoned(self, now: float) -> bool:
        """Return whether the caller has cancelled or the deadline has passed."""
        return self.future.cancelled() or now > self.deadline

    def set_result(self, index: int, result: RowResult) -> None:
        """Set the result of a row; the last one completes the future. Raise ``ValueError`` if it has one.

        Results that come after ``end`` are dropped.
        """
        with self._lock:
            if self._ended:
                return
            if self._results[index] is not None:
                raise ValueError(f"row {index} has a result already")
            self._results[index] = result
            self._remaining -= 1
            last = self._remaining == 0
        self._on_row_done(self)
        if last:
            self._complete()

    def end(self, error: HmiError) -> None:
        """Complete the future now: rows without a result get ``error``."""
        result = RowResult(error=row_error(error))
        with self._lock:
            if self._remaining == 0:
                return
            self._ended = True
            missing, self._remaining = self._remaining, 0
            self._results = [result if one is None else one for one in self._results]
        for _ in range(missing):
            self._on_row_done(self)
        self._complete()

    def _complete(self) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_result([one for one in self._results if one is not None])

    @property
    def is_answered(self) -> bool:
        """Whether all rows have their results."""
        return self._remaining == 0

    def has_result(self, index: int) -> bool:
        """Return whether a row has its result."""
        return self._results[index] is not None

    def set_error(self, index: int, error: HmiError) -> None:
        """Set an error as the result of a row."""
        self.set_result(index, RowResult(error=row_error(error)))


def row_error(error: HmiError) -> RowError:
    """Return an error as a row reports it: HTTP status, reason and message."""
    if isinstance(error, InvalidInput):
        status = 400
    elif error.reason == DEADLINE_REASON:
        status = 504
    elif isinstance(error, NotReady):
        status = 503
    else:
        status = 500
    return RowError(status=status, reason=error.reason, message=error.message)


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """One tokenised text; ``words`` if the request gave it as words. Compared by identity."""

    text: str
    words: tuple[str, ...] | None
    encoding: Encoding

    @property
    def length(self) -> int:
        """Tokens, special ones included."""
        return len(self.encoding.ids)


@dataclass(slots=True)
class RowGroup:
    """Rows of one request with one text on one base model; they stay together in one batch."""

    request: PendingRequest
    text: Text
    tenant: str
    rows: list[tuple[int, LoadedAdapter]]

    @property
    def length(self) -> int:
        """Tokens of the text."""
        return self.text.length

    @property
    def size(self) -> int:
        """Rows."""
        return len(self.rows)


def label_words(text: Text, probabilities: NDArray[np.float32], labels: Sequence[str]) -> list[TokenLabel]:
    """Return one label for each word from ``probabilities`` (T, labels or more) of the text's tokens.

    The first sub-token decides the label of a word; words without tokens get none. Ranges are characters of
    the text; for a text given as words, of the words joined by single spaces.
    """
    firsts = text.encoding.first_tokens()
    of_words = probabilities[[position for position, _ in firsts]]  # (words, labels)
    choices, scores = of_words.argmax(1), of_words.max(1)  # (words,), (words,)
    spans = _split_spans(text.words, firsts) if text.words is not None else _text_spans(text, firsts)
    return [
        TokenLabel(text=word, start=start, end=start + len(word), label=labels[choice], score=score)
        for (word, start), choice, score in zip(spans, choices.tolist(), scores.tolist(), strict=True)
    ]


def _split_spans(words: Sequence[str], firsts: Sequence[tuple[int, int]]) -> list[tuple[str, int]]:
    """Return (word, start) of words joined by single spaces."""
    starts = [0, *accumulate(len(word) + 1 for word in words)]
    return [(words[word], starts[word]) for _, word in firsts]


def _text_spans(text: Text, firsts: Sequence[tuple[int, int]]) -> list[tuple[str, int]]:
    """Return (word, start) of the tokenizer's words: first to last sub-token."""
    offsets = text.encoding.offsets
    last = {word: position for position, word in enumerate(text.encoding.word_ids) if word is not None}
    return [
        (text.text[offsets[position][0] : offsets[last[word]][1]], offsets[position][0])
        for position, word in firsts
    ]
