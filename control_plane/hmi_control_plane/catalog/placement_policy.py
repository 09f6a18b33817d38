"""The placement policy, a pure function: which runtimes an adapter should be placed on.

The bytes to download matter most: a runtime that has the adapter's domain downloads only the adapter
(megabytes), any other also the domain's table (gigabytes). Then the emptiest runtime wins, then the least
busy.
"""

from collections.abc import Iterable
from dataclasses import dataclass

_FULLNESS_STEPS = 10


@dataclass(frozen=True, slots=True)
class Candidate:
    """A runtime that the adapter may be placed on; sizes in bytes, ``load`` in waiting requests."""

    id: str
    capacity_bytes: int
    placed_bytes: int
    load: int
    has_domain: bool

    @property
    def free_bytes(self) -> int:
        """Capacity minus placed bytes; negative when more is placed than fits at once."""
        return self.capacity_bytes - self.placed_bytes


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """What to place, on how many runtimes; sizes in bytes."""

    adapter_bytes: int
    domain_bytes: int
    replicas: int

    def bytes_to_download(self, candidate: Candidate) -> int:
        """Return how much ``candidate`` would have to download."""
        return self.adapter_bytes + (0 if candidate.has_domain else self.domain_bytes)


def choose_runtimes(request: PlacementRequest, candidates: Iterable[Candidate]) -> tuple[str, ...]:
    """Return the ids of up to ``request.replicas`` distinct candidates, best first.

    A candidate with enough room is always preferred. If none has enough, the emptiest is chosen anyway: it
    keeps what does not fit in a lower tier and answers more slowly. The order of ``candidates`` does not
    matter.
    """
    ranked = sorted(candidates, key=lambda candidate: _rank(request, candidate))
    return tuple(candidate.id for candidate in ranked[: max(request.replicas, 0)])


def _rank(request: PlacementRequest, candidate: Candidate) -> tuple[bool, int, int, int, str]:
    left = candidate.free_bytes - request.bytes_to_download(candidate)
    if left < 0:
        return (True, -left, 0, candidate.load, candidate.id)
    # In steps, so that a small difference in bytes does not outweigh a long queue.
    fullness = _FULLNESS_STEPS - left * _FULLNESS_STEPS // max(candidate.capacity_bytes, 1)
    download = 0 if candidate.has_domain else request.domain_bytes
    return (False, download, fullness, candidate.load, candidate.id)
