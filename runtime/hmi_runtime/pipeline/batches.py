"""Forming batches: which queued items are computed together. Pure; ``batcher`` adds threads and time."""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from hmi_runtime.pipeline.fair import FairQueue

_SMALL_BATCH_TOKENS = 256
"""A batch of no more padded tokens than this costs its fixed overhead anyway: padding in it is free."""


def bucket_of(length: int) -> int:
    """Return the number of the length bucket: eight for every doubling, so that lengths in one are alike."""
    octave = max(length, 1).bit_length() - 1
    return 8 * octave + (8 * length >> octave) - 8


class Item(Protocol):
    """What is queued: rows that belong together, of one text."""

    @property
    def tenant(self) -> str:
        """Who asked."""

    @property
    def length(self) -> int:
        """Tokens of the text."""

    @property
    def size(self) -> int:
        """Rows."""


I = TypeVar("I", bound=Item)  # noqa: E741


@dataclass(frozen=True)
class BatchLimits:
    """Bounds of one batch.

    ``max_tokens`` counts padded tokens, rows times the longest. ``max_padding`` is the share of them that
    may be padding.
    """

    max_rows: int = 32
    max_tokens: int = 8192
    max_padding: float = 0.15


@dataclass
class _Shape:
    """Size of a batch as it fills."""

    limits: BatchLimits
    rows: int = 0
    tokens: int = 0
    longest: int = 0

    def admit(self, item: Item) -> bool:
        """Count ``item`` in if it fits; the first one always does, or nothing would ever be served."""
        rows = self.rows + item.size
        tokens = self.tokens + item.size * item.length
        longest = max(self.longest, item.length)
        padded = rows * longest
        if self.rows:
            if rows > self.limits.max_rows or padded > self.limits.max_tokens:
                return False
            wasteful = padded - tokens > self.limits.max_padding * padded
            if wasteful and padded > _SMALL_BATCH_TOKENS:
                return False
        self.rows, self.tokens, self.longest = rows, tokens, longest
        return True


class BatchQueue(Generic[I]):
    """Queued items; ``form`` takes the next batch."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._queue: FairQueue[I] = FairQueue()
        self._rows = 0

    @property
    def rows(self) -> int:
        """Rows that are queued."""
        return self._rows

    def push(self, item: I) -> None:
        """Queue an item."""
        self._queue.push(item.tenant, bucket_of(item.length), item.size * item.length, item)
        self._rows += item.size

    def form(self) -> list[I]:
        """Take the next batch: whose turn it is leads; items of its length, then of near ones, fill up."""
        lead = self._queue.lead()
        if lead is None:
            return []
        shape = _Shape(self._limits)
        batch: list[I] = []
        for bucket in sorted(self._queue.buckets(), key=lambda other: abs(other - lead)):
            batch += self._queue.take(bucket, shape.admit)
            if shape.rows >= self._limits.max_rows:
                break
        self._rows -= sum(item.size for item in batch)
        return batch
