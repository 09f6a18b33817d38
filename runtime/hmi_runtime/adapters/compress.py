"""Tune in full, then compress: a fully tuned copy of the upper layers becomes a plain LoRA.

Each matrix's difference from the base is cut to rank r by its singular value decomposition, the best
approximation of that rank there is (Eckart and Young, 1936); biases and norms are kept whole, being a few
kilobytes. Nothing is trained after the cut.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hmi_runtime.adapters.weights import LayerAdapter, LoraMatrix
from hmi_runtime.base import MATRICES, NORMS
from hmi_runtime.model import UpperLayers

CANDIDATE_RANKS = (8, 16, 32)
"""Ranks that are tried when a task names none."""

METRIC_TOLERANCE = 0.005
"""How much of the validation metric (0 to 1) a smaller rank may lose and still be chosen: half a point."""

FAITHFUL = 0.97
"""What share of its predictions on validation rows a smaller rank must have in common with the tuned model.

A metric on a hundred rows may stay while predictions change to and fro; on other rows that then costs.
"""


@dataclass(frozen=True)
class _Factors:
    """A difference as U diag(s) V^T, largest singular values first, cut to the largest rank asked for."""

    left: Tensor  # (d_out, r)
    values: Tensor  # (r,)
    right: Tensor  # (r, d_in)
    energy: float  # squared Frobenius norm of the whole difference


class Decomposition:
    """The differences of ``tuned`` from ``base``, decomposed once and cut to any rank up to ``max_rank``."""

    def __init__(self, tuned: UpperLayers, base: UpperLayers, max_rank: int) -> None:
        """Decompose; deterministic for the same weights. Both must be split at the same layer."""
        self._tuned = dict(enumerate(tuned.layers, start=tuned.split))
        self._factors = {
            index: {name: _factors(layer, other, name, max_rank) for name in MATRICES}
            for (index, layer), other in zip(self._tuned.items(), base.layers, strict=True)
        }

    def cut(self, rank: int) -> dict[int, LayerAdapter]:
        """Return the adapter of that rank, by absolute layer index."""
        return {
            index: LayerAdapter(
                lora={name: _cut(found, rank) for name, found in self._factors[index].items()},
                bias={name: layer.get_parameter(f"{name}.bias").detach().clone() for name in MATRICES},
                norms={
                    name: (
                        layer.get_parameter(f"{name}.weight").detach().clone(),
                        layer.get_parameter(f"{name}.bias").detach().clone(),
                    )
                    for name in NORMS
                },
            )
            for index, layer in self._tuned.items()
        }

    def energy_kept(self, rank: int) -> float:
        """Return the share (0 to 1) of the differences' squared norm that a cut to ``rank`` keeps."""
        factors = [found for layer in self._factors.values() for found in layer.values()]
        whole = sum(found.energy for found in factors)
        kept = sum(float(found.values[:rank].square().sum()) for found in factors)
        return kept / whole if whole else 1.0


def compress(tuned: UpperLayers, base: UpperLayers, rank: int) -> dict[int, LayerAdapter]:
    """Return ``tuned`` as a LoRA of that rank on ``base``, by absolute layer index."""
    return Decomposition(tuned, base, rank).cut(rank)


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


def _factors(tuned: torch.nn.Module, base: torch.nn.Module, name: str, max_rank: int) -> _Factors:
    difference = (tuned.get_parameter(f"{name}.weight") - base.get_parameter(f"{name}.weight")).detach()
    left, values, right = torch.linalg.svd(difference, full_matrices=False)
    return _Factors(
        left=left[:, :max_rank].clone(),
        values=values[:max_rank].clone(),
        right=right[:max_rank].clone(),
        energy=float(difference.square().sum()),
    )


def _cut(factors: _Factors, rank: int) -> LoraMatrix:
    """Return the best ``rank`` directions, singular values split evenly so that neither factor is tiny."""
    roots = factors.values[:rank].sqrt()  # (r,)
    return LoraMatrix(roots[:, None] * factors.right[:rank], factors.left[:, :rank] * roots)
