"""Planning a batch: rows are put in an order in which equal kinds of adapters lie side by side.

Then every product runs on a contiguous range of the batch, in place and without copies; rows that have
no adapter of a kind are outside its ranges and cost nothing. There are as many ranges as kinds in the
batch (rank buckets, bottleneck shapes), never as many as rows. Pure host work: no tensor is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from hmi_runtime.adapters.slots import BottleneckTraits, SlotTraits


@dataclass(frozen=True)
class LoraRange:
    """Rows start..stop whose LoRA has this rank (a bucket)."""

    start: int
    stop: int
    rank: int


@dataclass(frozen=True)
class BottleneckRange:
    """Rows start..stop whose bottlenecks share these traits."""

    start: int
    stop: int
    traits: BottleneckTraits


@dataclass(frozen=True)
class BatchPlan:
    """``order[i]`` is the caller's row that runs as row i; ``places[i]`` where its slot lies in the pool."""

    order: tuple[int, ...]
    places: tuple[int, ...]
    lora: tuple[LoraRange, ...]
    bottlenecks: tuple[BottleneckRange, ...]
    own_bias: bool
    own_norms: bool

    @property
    def in_order(self) -> bool:
        """Whether the rows already came in this order."""
        return self.order == tuple(range(len(self.order)))


def plan_batch(places: Sequence[int], traits: Sequence[SlotTraits]) -> BatchPlan:
    """Return the plan for a batch whose row i has its adapter at ``places[i]`` of the pool.

    ``traits[p]`` describes what lies at place p. O(rows), whatever the number of slots.
    """
    order = sorted(range(len(places)), key=lambda row: (_kind(traits[places[row]]), row))
    kinds = [traits[places[row]] for row in order]
    return BatchPlan(
        order=tuple(order),
        places=tuple(places[row] for row in order),
        lora=tuple(
            LoraRange(start, stop, kind.rank)
            for start, stop, kind in _runs([SlotTraits(rank=kind.rank) for kind in kinds])
            if kind.rank
        ),
        bottlenecks=tuple(
            BottleneckRange(start, stop, kind.bottleneck)
            for start, stop, kind in _runs([SlotTraits(bottleneck=kind.bottleneck) for kind in kinds])
            if kind.bottleneck is not None
        ),
        own_bias=any(kind.own_bias for kind in kinds),
        own_norms=any(kind.own_norms for kind in kinds),
    )


def _kind(traits: SlotTraits) -> tuple[int, int, str, tuple[tuple[str, str], ...]]:
    """Return the key that rows are put in order by: by rank, then by bottleneck."""
    if traits.bottleneck is None:
        return traits.rank, 0, "", ()
    return traits.rank, traits.bottleneck.width, traits.bottleneck.activation, traits.bottleneck.placements


def _runs(kinds: Sequence[SlotTraits]) -> list[tuple[int, int, SlotTraits]]:
    """Return (start, stop, kind) of every stretch of equal neighbours."""
    runs, start = [], 0
    for kind, members in groupby(kinds):
        stop = start + len(list(members))
        runs.append((start, stop, kind))
        start = stop
    return runs
