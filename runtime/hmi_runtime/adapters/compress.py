"""Tune in full, then compress: a fully tuned copy of the upper layers becomes a plain LoRA.

Each matrix's difference from the base is cut to rank r so that the *logits* on the task's rows change least
(``importance`` says how that is weighed): it is multiplied from both sides by roots of what matters, cut
there by singular value decomposition (the best approximation of that rank, Eckart and Young, 1936), and
divided by the roots again. What the cut takes at the mean input goes into the bias. Biases and norms are kept
whole, being a few kilobytes. What comes after the cut is in ``training.settle``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hmi_runtime.adapters.importance import ByMatrix, Importance
from hmi_runtime.adapters.weights import LayerAdapter, LoraMatrix
from hmi_runtime.base import MATRICES, NORMS
from hmi_runtime.model import UpperLayers

CANDIDATE_RANKS = (8, 16, 32)
"""Ranks that are tried when a task names none."""

METRIC_TOLERANCE = 0.005
"""How much of the validation metric (0 to 1) a smaller rank may lose and still be chosen: half a point."""

FAITHFUL = 0.99
"""What share of its predictions on validation rows a smaller rank must have in common with the tuned model.

A metric on a hundred rows may stay while predictions change to and fro; on other rows that then costs, up to
as much as the share that changed. One point is what an adapter may lose in all.
"""

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class _Factors:
    """A difference as left @ diag(values) @ right, what matters most first, cut to the largest rank."""

    left: Tensor  # (d_out, r)
    values: Tensor  # (r,)
    right: Tensor  # (r, d_in)
    energy: float  # the whole difference's squared norm, as importance weighs it
    mean: Tensor  # (d_in,), of the inputs
    at_mean: Tensor  # (d_out,), what the whole difference makes of it

    def cut(self, rank: int) -> LoraMatrix:
        """Return the ``rank`` directions that matter most, with factors of the same size in each."""
        right, left = self.right[:rank], self.left[:, :rank] * self.values[:rank]  # (r, d_in), (d_out, r)
        even = (left.norm(dim=0) / right.norm(dim=1).clamp_min(_TINY)).sqrt()  # (r,)
        return LoraMatrix(right * even[:, None], left / even.clamp_min(_TINY))


class Decomposition:
    """The differences of ``tuned`` from ``base``, decomposed once and cut to any rank up to ``max_rank``."""

    def __init__(self, tuned: UpperLayers, base: UpperLayers, weights: ByMatrix, max_rank: int) -> None:
        """Decompose; deterministic for the same weights. Both must be split at the same layer.

        ``weights`` say what matters of the tuned layers' matrices.
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
        norms = {
            name: (
                layer.get_parameter(f"{name}.weight").detach().clone(),
                layer.get_parameter(f"{name}.bias").detach().clone(),
            )
            for name in NORMS
        }
        return LayerAdapter(lora=lora, bias=bias, norms=norms)

    def energy_kept(self, rank: int) -> float:
        """Return the share (0 to 1) of the differences, weighed by importance, that a cut keeps."""
        factors = [found for layer in self._factors.values() for found in layer.values()]
        whole = sum(found.energy for found in factors)
        kept = sum(float(found.values[:rank].square().sum()) for found in factors)
        return kept / whole if whole else 1.0


@dataclass(frozen=True)
class Kept:
    """What a cut keeps on validation rows: its metric, and the share of predictions as the tuned model's."""

    metric: float
    agreement: float


@dataclass(frozen=True)
class RankChoice:
    """The rank that was taken, and what each that was tried gave."""

    rank: int
    kept: Mapping[int, Kept]


def smallest_rank(
    evaluate: Callable[[int], Kept],
    full_score: float,
    *,
    candidates: Sequence[int] = CANDIDATE_RANKS,
    tolerance: float = METRIC_TOLERANCE,
    faithful: float = FAITHFUL,
) -> RankChoice:
    """Return the smallest rank that keeps the tuned model's validation metric and its predictions.

    ``evaluate(rank)`` measures the cut to that rank, ``full_score`` is the uncut model's metric; ranks are
    tried from the smallest up. One whose metric is lower by more than ``tolerance``, or that agrees with
    the tuned model in less than ``faithful``, is not taken. When none is good enough, the one that agrees
    most is.
    """
    kept: dict[int, Kept] = {}
    for rank in sorted(candidates):
        kept[rank] = evaluate(rank)
        if kept[rank].metric >= full_score - tolerance and kept[rank].agreement >= faithful:
            return RankChoice(rank, kept)
    return RankChoice(max(kept, key=lambda rank: (kept[rank].agreement, -rank)), kept)


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
