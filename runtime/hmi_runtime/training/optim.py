"""Optimisation shared by all training loops: gradient step, learning-rate schedule and batch order.

The schedule and the order are pure functions of the step number.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hmi_api.errors import InvalidInput
from hmi_runtime.training.checkpoint import derived_seed

MAX_GRADIENT_NORM = 1.0
_SMOOTHING = 0.95
Progress = Callable[[int, int, dict[str, float]], None]
"""Called with (step, steps, metrics)."""


def make_adamw(
    groups: Iterable[tuple[Iterable[nn.Parameter], float]], *, weight_decay: float = 0.01
) -> torch.optim.Optimizer:
    """Return AdamW for groups of parameters, each with its peak learning rate; empty groups are left out."""
    listed = [(list(parameters), rate) for parameters, rate in groups]
    return torch.optim.AdamW(
        [{"params": parameters, "lr": rate, "peak": rate} for parameters, rate in listed if parameters],
        weight_decay=weight_decay,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, warmup: int) -> None:
    """Set every group's rate for ``step``: its peak times ``learning_rate_factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * learning_rate_factor(step, steps, warmup)


def optimizer_step(loss: Tensor, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Take one optimiser step on ``loss`` with the gradient's norm clipped.

    Raises ``InvalidInput`` TrainingDiverged, before any weight changes, if the gradient is not finite.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(module.parameters(), MAX_GRADIENT_NORM)
    if not torch.isfinite(norm):
        raise InvalidInput(
            "TrainingDiverged",
            f"The training's loss became {loss.item():g} and its gradient {norm.item():g}; lower "
            "training.learningRate.",
        )
    optimizer.step()


def moving_average(average: float | None, value: float) -> float:
    """Return the exponential moving average after ``value``."""
    return value if average is None else _SMOOTHING * average + (1 - _SMOOTHING) * value


_BATCHES_IN_A_POOL = 50


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Return the share of the peak rate at ``step`` (from 0): linear warm-up, then linear decay to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return (steps - step) / max(1, steps - warmup)


class BatchSampler:
    """Assigns rows to steps.

    Each epoch is shuffled again. Rows are then sorted by length within pools of many batches, so that a batch
    has rows of similar length and little padding, and the batches are shuffled. Only one epoch's order is in
    memory, 8 bytes a row.
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
        """Batches in an epoch; the last one can be smaller."""
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
