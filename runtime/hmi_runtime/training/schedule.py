"""When and in what order: rows of a step, and its learning rate. Pure functions of the step number."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hmi_runtime.training.checkpoint import derived_seed

_BATCHES_IN_A_POOL = 50


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Return the share of the peak rate at ``step`` (from 0): linear warm-up, then linear decay to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return (steps - step) / max(1, steps - warmup)


class BatchOrder:
    """Which rows make up which step.

    Every epoch has its own shuffle. Within pools of many batches rows are sorted by length, so that a
    batch holds rows of like length and little padding, and the batches are shuffled again. Only one
    epoch's order is held, 8 bytes a row.
    """

    def __init__(
        self, rows: NDArray[np.int64], lengths: NDArray[np.int64] | Sequence[int], batch_size: int, seed: int
    ) -> None:
        """``rows`` are row numbers and ``lengths`` their lengths, both (R,); R is at least 1."""
        self._rows = rows
        self._lengths = np.asarray(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = -1
        self._batches: list[NDArray[np.int64]] = []

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch; the last one may be smaller."""
        return -(-len(self._rows) // self._batch_size)

    def rows_of(self, step: int) -> NDArray[np.int64]:
        """Return the row numbers of ``step``, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._batches, self._epoch = self._shuffle(epoch), epoch
        return self._batches[place]

    def _shuffle(self, epoch: int) -> list[NDArray[np.int64]]:
        random = np.random.default_rng(derived_seed(self._seed, epoch))
        order = random.permutation(len(self._rows))
        pool = self._batch_size * _BATCHES_IN_A_POOL
        batches = []
        for start in range(0, len(order), pool):
            part = order[start : start + pool]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            batches += [
                self._rows[part[at : at + self._batch_size]] for at in range(0, len(part), self._batch_size)
            ]
        return [batches[index] for index in random.permutation(len(batches))]
