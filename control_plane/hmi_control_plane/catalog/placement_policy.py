"""The placement policy, a pure function: which runtimes an adapter should be placed on.

Adapters count against a runtime's budget for adapters in host memory, layers and tables against its budget
for tables. The bytes to download matter most: a runtime that has the adapter's domain downloads only the
adapter (megabytes), any other also the domain's table (gigabytes). Then the emptiest runtime wins, then the
least busy.
"""

from collections.abc import Iterable
from dataclasses import dataclass

_FULLNESS_STEPS = 10
_TABLES_IN_MEMORY = 10
"""How many times the budget for tables the tables on one runtime may need.

``hmi_bench tables`` measures the cost of ten times.
"""


@dataclass(frozen=True, slots=True)
class Room:
    """A budget of a runtime and what is placed against it, in bytes."""

    capacity: int
    placed: int

    @property
    def free(self) -> int:
        """Capacity minus placed bytes; negative when more is placed than fits at once."""
        return self.capacity - self.placed

    def fullness(self, more: int) -> int:
        """Return how full it is with ``more`` bytes, in steps of a tenth of the capacity."""
        return (self.placed + more) * _FULLNESS_STEPS // max(self.capacity, 1)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A runtime that the adapter may be placed on; ``load`` is the number of waiting requests."""

    id: str
    host: Room
    tables: Room
    load: int
    has_domain: bool
    holds_tables_in_part: bool = True
    """Whether it serves tables that do not fit in its budget for them.

    Runtimes of older versions do not, and there adapters and tables share what is free.
    """


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """What to place, on how many runtimes; sizes in bytes."""

    adapter_bytes: int
    domain_bytes: int
    replicas: int

    def bytes_to_download(self, candidate: Candidate) -> int:
        """Return how much ``candidate`` would have to download."""
        return self.adapter_bytes + self.new_table_bytes(candidate)

    def new_table_bytes(self, candidate: Candidate) -> int:
        """Return the bytes of layers and tables that ``candidate`` does not have yet."""
        return 0 if candidate.has_domain else self.domain_bytes

    def fits(self, candidate: Candidate) -> bool:
        """Return whether ``candidate`` has room in memory for all of it."""
        return self.bytes_missing(candidate) == 0

    def bytes_missing(self, candidate: Candidate) -> int:
        """Return how many bytes of what is new to ``candidate`` have no room in its memory."""
        if not candidate.holds_tables_in_part:
            free = min(candidate.host.free, candidate.tables.free)
            return max(0, self.bytes_to_download(candidate) - free)
        tables = 0 if candidate.has_domain else max(0, self.domain_bytes - candidate.tables.free)
        return max(0, self.adapter_bytes - candidate.host.free) + tables

    def fits_in_part(self, candidate: Candidate) -> bool:
        """Return whether the adapter fits and enough of the tables would be in memory."""
        return (
            candidate.holds_tables_in_part
            and self.adapter_bytes <= candidate.host.free
            and self.domain_bytes + candidate.tables.placed <= _TABLES_IN_MEMORY * candidate.tables.capacity
        )


def choose_runtimes(request: PlacementRequest, candidates: Iterable[Candidate]) -> tuple[str, ...]:
    """Return the ids of up to ``request.replicas`` distinct candidates, best first.

    A candidate with enough room is always preferred; then one where tables have room in part, those that are
    least full first. If none has that, the emptiest is chosen anyway: it keeps what does not fit in a lower
    tier and answers more slowly. The order of ``candidates`` does not matter.
    """
    ranked = sorted(candidates, key=lambda candidate: _rank(request, candidate))
    return tuple(candidate.id for candidate in ranked[: max(request.replicas, 0)])


def _rank(request: PlacementRequest, candidate: Candidate) -> tuple[int, int, int, int, str]:
    tables = request.new_table_bytes(candidate)
    # In steps, so that a small difference in bytes does not outweigh a long queue.
    on_host = candidate.host.fullness(request.adapter_bytes)
    in_tables = candidate.tables.fullness(tables)
    if request.fits(candidate):
        return (0, tables, max(on_host, in_tables), candidate.load, candidate.id)
    if request.fits_in_part(candidate):
        return (1, in_tables, on_host, candidate.load, candidate.id)
    return (2, request.bytes_missing(candidate), 0, candidate.load, candidate.id)
