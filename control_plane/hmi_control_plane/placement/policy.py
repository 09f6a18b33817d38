"""The placement policy, pure: where an adapter should go, given what the runtimes hold.

Bytes moved matter most: a runtime that already holds the adapter's domain needs only the adapter (megabytes),
any other needs the domain's table too (gigabytes). Among equals the emptiest wins, then the least busy.
"""

from collections.abc import Iterable
from dataclasses import dataclass

_FULLNESS_STEPS = 10


@dataclass(frozen=True, slots=True)
class Candidate:
    """A runtime that may take an adapter; sizes in bytes, ``load`` in requests waiting."""

    id: str
    capacity_bytes: int
    placed_bytes: int
    load: int
    holds_domain: bool

    @property
    def free_bytes(self) -> int:
        """Capacity that no placement has claimed; negative when more is placed than fits at once."""
        return self.capacity_bytes - self.placed_bytes


@dataclass(frozen=True, slots=True)
class Demand:
    """What is to be placed; sizes in bytes."""

    adapter_bytes: int
    domain_bytes: int
    replicas: int

    def bytes_moved(self, candidate: Candidate) -> int:
        """Return what ``candidate`` would have to fetch."""
        return self.adapter_bytes + (0 if candidate.holds_domain else self.domain_bytes)


def place(demand: Demand, candidates: Iterable[Candidate]) -> tuple[str, ...]:
    """Return the ids of up to ``demand.replicas`` distinct candidates, best first.

    A candidate with room is always preferred to one without. Where none has room the emptiest is taken all
    the same: a runtime keeps what does not fit in a lower tier and serves it more slowly, which is better
    than not at all. The same input gives the same answer, in whatever order the candidates come.
    """
    ranked = sorted(candidates, key=lambda candidate: _rank(demand, candidate))
    return tuple(candidate.id for candidate in ranked[: max(demand.replicas, 0)])


def _rank(demand: Demand, candidate: Candidate) -> tuple[bool, int, int, int, str]:
    left = candidate.free_bytes - demand.bytes_moved(candidate)
    if left < 0:
        return (True, -left, 0, candidate.load, candidate.id)
    # In steps, so that a few bytes do not outweigh a long queue.
    fullness = _FULLNESS_STEPS - left * _FULLNESS_STEPS // max(candidate.capacity_bytes, 1)
    moved = 0 if candidate.holds_domain else demand.domain_bytes
    return (False, moved, fullness, candidate.load, candidate.id)
