"""What matters of each matrix on a task's rows: where its inputs go, and which outputs move the logits.

To second order, a change D of a matrix changes the logits by the mean over tokens of |g . D x|^2, where x is
the token's input and g the gradient of a random combination of the row's logits by the token's output. With x
and g taken as independent (as in K-FAC, Martens and Grosse, 2015) that is |R^T D L|^2 for roots L of the
inputs' and R of the gradients' second moments, once what D does to the mean input is left to the bias.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hmi_runtime.base import MATRICES
from hmi_runtime.model import UpperLayers

_FLOOR = 0.1
"""Share of the mean eigenvalue that is added to all: what few rows never showed may still come."""


@dataclass(frozen=True)
class Importance:
    """What matters of one matrix."""

    mean: Tensor  # (d_in,) float64, of its inputs
    inputs: Tensor  # (d_in, d_in) float64, lower triangular: inputs @ inputs.T is their covariance
    outputs: Tensor  # (d_out, d_out) float64, the same of the gradients' second moments


ByMatrix = Mapping[int, Mapping[str, Importance]]
"""By absolute layer index and name of a matrix."""


def importance(
    upper: UpperLayers,
    logits_of: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    seed: int = 0,
) -> ByMatrix:
    """Run ``logits_of``, which goes through ``upper``, over batches and return what matters of its matrices.

    Batches are states (B, T, D) float32 and mask (B, T) bool; logits are (B, n) or (B, T, n). Deterministic
    for a seed. Raises ``ValueError`` when there are no rows.
    """
    watches = {
        (index, name): _Watch(layer.get_submodule(name))
        for index, layer in enumerate(upper.layers, start=upper.split)
        for name in MATRICES
    }
    generator = torch.Generator().manual_seed(seed)
    try:
        for states, mask in batches:
            logits = logits_of(states.clone().requires_grad_(True), mask)
            towards = torch.randn(logits.shape, generator=generator)
            towards -= towards.mean(-1, keepdim=True)  # a constant added to all logits changes nothing
            if logits.ndim == 3:
                towards *= mask[:, :, None]
            gradients = torch.autograd.grad(
                (logits * towards).sum(), [watch.output for watch in watches.values()]
            )
            for watch, gradient in zip(watches.values(), gradients, strict=True):
                watch.add(gradient, mask)
    finally:
        for watch in watches.values():
            watch.end()
    found: dict[int, dict[str, Importance]] = {}
    for (index, name), watch in watches.items():
        found.setdefault(index, {})[name] = watch.seen()
    return found


class _Watch:
    """Sees what a matrix reads and writes, and sums up what is needed of it."""

    input: Tensor  # (B, T, d_in), of the last run
    output: Tensor  # (B, T, d_out)

    def __init__(self, matrix: nn.Module) -> None:
        self._hook = matrix.register_forward_hook(self._keep)
        self._count = 0
        self._total: Tensor | float = 0.0  # (d_in,) float64
        self._inputs: Tensor | float = 0.0  # (d_in, d_in) float64
        self._outputs: Tensor | float = 0.0  # (d_out, d_out) float64

    def _keep(self, matrix: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        self.input, self.output = given[0].detach(), output

    def add(self, gradient: Tensor, mask: Tensor) -> None:
        """Take in the last run's tokens; ``gradient`` (B, T, d_out)."""
        x, g = self.input[mask], gradient[mask]  # (N, d_in), (N, d_out)
        self._count += len(x)
        self._total = self._total + x.double().sum(0)
        self._inputs = self._inputs + (x.t() @ x).double()
        self._outputs = self._outputs + (g.t() @ g).double()

    def end(self) -> None:
        """Look no longer."""
        self._hook.remove()

    def seen(self) -> Importance:
        """Return what has been summed up."""
        if isinstance(self._total, float) or isinstance(self._inputs, float):
            raise ValueError("there are no rows to see what matters on")
        mean = self._total / self._count
        covariance = self._inputs / self._count - torch.outer(mean, mean)
        return Importance(mean, _root(covariance), _root(torch.as_tensor(self._outputs) / self._count))


def _root(moments: Tensor) -> Tensor:
    """Return the lower triangular root of ``moments`` (d, d) and a floor under them."""
    floor = moments.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny) * _FLOOR
    root: Tensor = torch.linalg.cholesky(moments + floor * torch.eye(len(moments), dtype=moments.dtype))
    return root
