"""What a contender is, and how several are timed so that a drifting machine favours none."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from hmi_bench.turns import percentile, seconds_in_turns


@dataclass(frozen=True)
class Batch:
    """Rows of several tenants; row i belongs to tenant i.

    ids (B, T) int64 and mask (B, T) bool, padded to the longest row.
    """

    ids: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]


class Contender(Protocol):
    """One way to serve a batch in which every row is another tenant's."""

    name: str
    bytes_a_tenant: int
    """What one more tenant adds in memory."""

    def prepare(self, batch: Batch) -> None:
        """Do what is not part of serving a request, such as sizing buffers."""

    def serve(self, batch: Batch) -> object:
        """Answer every row; the result is what a caller would read."""


@dataclass(frozen=True)
class Timing:
    """Median and 90th percentile of a contender's seconds a batch, at one batch size."""

    name: str
    batch_size: int
    median: float
    p90: float

    @property
    def rows_a_second(self) -> float:
        """Throughput at that batch size."""
        return self.batch_size / self.median


def make_batch(lengths: Sequence[int], vocab_size: int, seed: int) -> Batch:
    """Return a batch of random word ids with rows of the given lengths."""
    random = torch.Generator().manual_seed(seed)
    length = max(lengths)
    ids = torch.randint(1000, vocab_size, (len(lengths), length), generator=random)  # (B, T)
    mask = torch.arange(length)[None] < torch.tensor(lengths)[:, None]  # (B, T)
    return Batch(ids.masked_fill(~mask, 0), mask)


def time_in_turns(
    contenders: Sequence[Contender], batch: Batch, *, rounds: int, warmups: int = 1
) -> list[Timing]:
    """Time every contender on ``batch`` once a round, in a different order each round."""
    for contender in contenders:
        contender.prepare(batch)
    ways = {contender.name: partial(contender.serve, batch) for contender in contenders}
    seconds = seconds_in_turns(ways, rounds=rounds, warmups=warmups)
    return [
        Timing(name, len(batch), statistics.median(values), percentile(values, 0.9))
        for name, values in seconds.items()
    ]
