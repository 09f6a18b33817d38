"""Compression: a fully tuned copy of the upper layers becomes a LoRA.

Each matrix's difference from the base is cut to rank r so that the *logits* on the task's rows change
least. The difference is multiplied from both sides by the roots in ``Importance``, cut by singular value
decomposition (the best approximation of that rank, Eckart and Young, 1936), and divided by
the roots again. The effect that the cut removes at the mean input is added to the bias. Biases and norms
are kept whole (a few kilobytes). Training continues after the cut in ``hmi_runtime.training``.

Importance: to second order, a change D of a matrix changes the logits by the mean over tokens of |g . D
x|^2, where x is the token's input and g the gradient, by the token's output, of a random combination of the
row's logits. With x and g taken as independent (as in K-FAC, Martens and Grosse, 2015) that is |R^T D L|^2
for roots L of the inputs' and R of the gradients' second moments, once the effect of D at the mean input is
left to the bias.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hmi_runtime.adapters.weights import LayerAdapter, LoraMatrix, export_norms
from hmi_runtime.models.architecture import MATRICES
from hmi_runtime.models.encoder import UpperLayers

_FLOOR = 0.1
"""Share of the mean eigenvalue added to all eigenvalues, for directions that the few rows do not show."""


CANDIDATE_RANKS = (8, 16, 32)
"""Ranks to try when a task names none."""
METRIC_TOLERANCE = 0.005
"""How much of the validation metric (0 to 1) a smaller rank may lose and still be chosen."""
FAITHFUL = 0.99
"""Share of predictions on validation rows in which a smaller rank must agree with the tuned model.

On a hundred rows the metric may stay equal although predictions change in both directions; on other rows that
can cost up to the share that changed. An adapter may lose one point in all.
"""
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Importance:
    """Second moments of one matrix's inputs and output gradients."""

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
    """Run ``logits_of``, which uses ``upper``, over batches and return the importance of its matrices.

    Batches are states (B, T, D) float32 and mask (B, T) bool; logits are (B, n) or (B, T, n). Deterministic
    for a seed. Raises ``ValueError`` when there are no rows.
    """
    recorders = {
        (index, name): _MomentRecorder(layer.get_submodule(name))
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
                (logits * towards).sum(), [recorder.output for recorder in recorders.values()]
            )
            for recorder, gradient in zip(recorders.values(), gradients, strict=True):
                recorder.add(gradient, mask)
    finally:
        for recorder in recorders.values():
            recorder.close()
    found: dict[int, dict[str, Importance]] = {}
    for (index, name), recorder in recorders.items():
        found.setdefault(index, {})[name] = recorder.importance()
    return found


class _MomentRecorder:
    """Records a matrix's inputs and outputs by a forward hook, and sums their moments."""

    input: Tensor  # (B, T, d_in), of the last run
    output: Tensor  # (B, T, d_out)

    def __init__(self, matrix: nn.Module) -> None:
        self._hook = matrix.register_forward_hook(self._keep)
        self._count = 0
        self._reference: Tensor | None = None  # (d_in,) float32, near the mean
        self._total: Tensor | float = 0.0  # (d_in,) float64, of inputs minus the reference, as the moments
        self._inputs: Tensor | float = 0.0  # (d_in, d_in) float64
        self._outputs: Tensor | float = 0.0  # (d_out, d_out) float64

    def _keep(self, matrix: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        self.input, self.output = given[0].detach(), output

    def add(self, gradient: Tensor, mask: Tensor) -> None:
        """Add the tokens of the last run; ``gradient`` (B, T, d_out)."""
        x, g = self.input[mask], gradient[mask]  # (N, d_in), (N, d_out)
        if self._reference is None:
            self._reference = x.mean(0)
        x = (
            x - self._reference
        )  # else rounding could exceed the covariance of inputs that are nearly constant
        self._count += len(x)
        self._total = self._total + x.double().sum(0)
        self._inputs = self._inputs + (x.t() @ x).double()
        self._outputs = self._outputs + (g.t() @ g).double()

    def close(self) -> None:
        """Remove the hook."""
        self._hook.remove()

    def importance(self) -> Importance:
        """Return the importance from the sums; ``ValueError`` when there are no rows."""
        if self._reference is None:
            raise ValueError("there are no rows to measure importance on")
        shift = torch.as_tensor(self._total) / self._count  # (d_in,)
        covariance = torch.as_tensor(self._inputs) / self._count - torch.outer(shift, shift)
        return Importance(
            self._reference.double() + shift,
            _root(covariance),
            _root(torch.as_tensor(self._outputs) / self._count),
        )


def _root(moments: Tensor) -> Tensor:
    """Return the lower triangular root of ``moments`` (d, d) and a floor under them."""
    floor = moments.diagonal().mean().clamp_min(_TINY) * _FLOOR
    root: Tensor = torch.linalg.cholesky(moments + floor * torch.eye(len(moments), dtype=moments.dtype))
    return root


@dataclass(frozen=True)
class _Factors:
    """A difference as left @ diag(values) @ right, most important directions first."""

    left: Tensor  # (d_out, r), r is the largest rank
    values: Tensor  # (r,)
    right: Tensor  # (r, d_in)
    energy: float  # the whole difference's squared norm, as importance weighs it
    mean: Tensor  # (d_in,), of the inputs
    at_mean: Tensor  # (d_out,), the whole difference applied to it

    def cut(self, rank: int) -> LoraMatrix:
        """Return the ``rank`` most important directions, each one's norm split evenly between a and b."""
        right, left = self.right[:rank], self.left[:, :rank] * self.values[:rank]  # (r, d_in), (d_out, r)
        even = (left.norm(dim=0) / right.norm(dim=1).clamp_min(_TINY)).sqrt()  # (r,)
        return LoraMatrix(right * even[:, None], left / even.clamp_min(_TINY))


class Decomposition:
    """The differences of ``tuned`` from ``base``, decomposed once and cut to any rank up to ``max_rank``."""

    def __init__(self, tuned: UpperLayers, base: UpperLayers, weights: ByMatrix, max_rank: int) -> None:
        """Decompose; deterministic for the same weights. Both must be split at the same layer.

        ``weights`` is the importance of the tuned layers' matrices.
        """
        self._tuned = dict(enumerate(tuned.layers, start=tuned.split))
        self._factors = {
            index: {name: _factors(layer, other, name, weights[index][name], max_rank) for name in MATRICES}
            for (index, layer), other in zip(self._tuned.items(), base.layers, strict=True)
        }

    def cut(self, rank: int) -> dict[int, LayerAdapter]:
        """Return the adapter of that rank, by absolute layer index."""
        return {index: self._cut(index, layer, rank) for index, layer in self._tuned.items()}

    def _cut(self, index: int, layer: nn.Module, rank: int) -> LayerAdapter:
        lora, bias = {}, {}
        for name, factors in self._factors[index].items():
            lora[name] = factors.cut(rank)
            lost = factors.at_mean - lora[name].b @ (lora[name].a @ factors.mean)  # (d_out,)
            bias[name] = layer.get_parameter(f"{name}.bias").detach() + lost
        return LayerAdapter(lora=lora, bias=bias, norms=export_norms(layer))

    def energy_kept(self, rank: int) -> float:
        """Return the share (0 to 1) of the differences' importance-weighted squared norm that a cut keeps."""
        factors = [found for layer in self._factors.values() for found in layer.values()]
        whole = sum(found.energy for found in factors)
        kept = sum(float(found.values[:rank].square().sum()) for found in factors)
        return kept / whole if whole else 1.0


@dataclass(frozen=True)
class CutQuality:
    """Quality of a cut on validation rows."""

    metric: float
    agreement: float  # share of predictions that equal the tuned model's


@dataclass(frozen=True)
class RankChoice:
    """The chosen rank, and the quality of every rank that was tried."""

    rank: int
    tried: Mapping[int, CutQuality]


def smallest_rank(
    evaluate: Callable[[int], CutQuality],
    full_score: float,
    *,
    candidates: Sequence[int] = CANDIDATE_RANKS,
) -> RankChoice:
    """Return the smallest rank that keeps the tuned model's validation metric and its predictions.

    ``evaluate(rank)`` measures the cut to that rank, ``full_score`` is the uncut model's metric; ranks are
    tried from the smallest up. A rank is rejected when its metric is lower by more than ``METRIC_TOLERANCE``,
    or its agreement with the tuned model is below ``FAITHFUL``. If all are rejected, the one with the highest
    agreement is chosen.
    """
    tried: dict[int, CutQuality] = {}
    for rank in sorted(candidates):
        tried[rank] = evaluate(rank)
        kept = tried[rank]
        if kept.metric >= full_score - METRIC_TOLERANCE and kept.agreement >= FAITHFUL:
            return RankChoice(rank, tried)
    return RankChoice(max(tried, key=lambda rank: (tried[rank].agreement, -rank)), tried)


def _factors(tuned: nn.Module, base: nn.Module, name: str, weight: Importance, max_rank: int) -> _Factors:
    difference = tuned.get_parameter(f"{name}.weight") - base.get_parameter(f"{name}.weight")
    difference = difference.detach().double()  # (d_out, d_in)
    weighed = weight.outputs.t() @ difference @ weight.inputs  # (d_out, d_in)
    left, values, right = torch.linalg.svd(weighed, full_matrices=False)
    left, right = left[:, :max_rank], right[:max_rank]  # (d_out, r), (r, d_in)
    return _Factors(
        left=torch.linalg.solve_triangular(weight.outputs.t(), left, upper=True).float(),
        values=values[:max_rank].float(),
        right=torch.linalg.solve_triangular(weight.inputs, right, upper=False, left=False).float(),
        energy=float(weighed.square().sum()),
        mean=weight.mean.float(),
        at_mean=(difference @ weight.mean).float(),
    )
