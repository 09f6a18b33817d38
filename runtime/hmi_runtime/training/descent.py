"""What every training loop does after it has a loss."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hmi_api.errors import InvalidInput

LARGEST_GRADIENT = 1.0

_SMOOTHING = 0.95

Progress = Callable[[int, int, dict[str, float]], None]
"""Called with (step, steps, metrics)."""


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its peak times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def descend(loss: Tensor, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Take one step down ``loss``, the gradient's norm bounded.

    Raises ``InvalidInput`` TrainingDiverged, before any weight is changed, when the gradient is infinite or
    not a number.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(module.parameters(), LARGEST_GRADIENT)
    if not torch.isfinite(norm):
        raise InvalidInput(
            "TrainingDiverged",
            f"The training's loss became {loss.item():g} and its gradient {norm.item():g}; lower "
            "training.learningRate.",
        )
    optimizer.step()


def smoothed(average: float | None, value: float) -> float:
    """Return the running average of a noisy figure."""
    return value if average is None else _SMOOTHING * average + (1 - _SMOOTHING) * value
