"""The order in which the rows of a batch run, so that rows with adapters of equal shape are neighbours.

Every product over adapters then runs on a contiguous range of the batch, in place and without copies, and
costs nothing for rows outside it. There are as many ranges as shapes in the batch (rank buckets, bottleneck
shapes), not as many as rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, NamedTuple, TypeVar

from hmi_runtime.adapters.slot_pool import BottleneckTraits, SlotTraits


class LoraShape(NamedTuple):
    """What a row's LoRA product multiplies."""

    rank: int
    """Rank bucket; 0 for none."""
    own_bias: bool

    @property
    def rows(self) -> slice:
        """The rows of a slot's ``lora_a`` and ``lora_b`` that take part; row 0 is the bias."""
        return slice(0 if self.own_bias else 1, self.rank + 1)


Kind = TypeVar("Kind", bound=LoraShape | BottleneckTraits)


@dataclass(frozen=True)
class RowRange(Generic[Kind]):
    """Rows start..stop of a batch, which have one kind of LoRA or bottlenecks."""

    start: int
    stop: int
    kind: Kind


@dataclass(frozen=True)
class BatchPlan:
    """``order[i]`` is the caller's row that runs as row i; ``places[i]`` is its slot's index in the pool."""

    order: tuple[int, ...]
    places: tuple[int, ...]
    lora: tuple[RowRange[LoraShape], ...]  # of rows that have LoRA or biases; they come last
    bottlenecks: tuple[RowRange[BottleneckTraits], ...]
    own_norms: bool

    @property
    def without_lora(self) -> int:
        """How many rows, the first ones, have neither LoRA nor biases."""
        return self.lora[0].start if self.lora else len(self.order)

    @property
    def in_order(self) -> bool:
        """Whether the caller's rows are already in this order."""
        return self.order == tuple(range(len(self.order)))


def plan_batch(places: Sequence[int], traits: Sequence[SlotTraits]) -> BatchPlan:
    """Return the plan for a batch whose row i has its adapter at index ``places[i]`` of the pool.

    ``traits[p]`` describes the adapter at index p. Reads no tensors; O(rows), whatever the number of slots.
    """
    order = sorted(range(len(places)), key=lambda row: (_kind(traits[places[row]]), row))
    kinds = [traits[places[row]] for row in order]
    return BatchPlan(
        order=tuple(order),
        places=tuple(places[row] for row in order),
        lora=_ranges([_lora_shape(kind) for kind in kinds]),
        bottlenecks=_ranges([kind.bottleneck for kind in kinds]),
        own_norms=any(kind.own_norms for kind in kinds),
    )


def _lora_shape(traits: SlotTraits) -> LoraShape | None:
    return LoraShape(traits.rank, traits.own_bias) if traits.rank or traits.own_bias else None


def _kind(traits: SlotTraits) -> tuple[int, bool, int, str, tuple[tuple[str, str], ...]]:
    """Return the sort key of rows: by rank, then by biases, then by bottleneck."""
    if traits.bottleneck is None:
        return traits.rank, traits.own_bias, 0, "", ()
    bottleneck = traits.bottleneck
    return traits.rank, traits.own_bias, bottleneck.width, bottleneck.activation, bottleneck.placements


def _ranges(kinds: Sequence[Kind | None]) -> tuple[RowRange[Kind], ...]:
    """Return the runs of equal neighbours; rows of kind None are in no range."""
    ranges, start = [], 0
    for kind, members in groupby(kinds):
        stop = start + len(list(members))
        if kind is not None:
            ranges.append(RowRange(start, stop, kind))
        start = stop
    return tuple(ranges)
