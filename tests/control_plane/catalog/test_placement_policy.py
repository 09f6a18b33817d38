"""The placement policy: properties that it has for any set of runtimes."""

import random

from hypothesis import given
from hypothesis import strategies as st

from hmi_control_plane.catalog.placement_policy import Candidate, PlacementRequest, choose_runtimes

_sizes = st.integers(min_value=0, max_value=10_000)
_candidates = st.lists(
    st.builds(
        Candidate,
        id=st.text("abcdefgh", min_size=1, max_size=4),
        capacity_bytes=_sizes,
        placed_bytes=_sizes,
        load=st.integers(min_value=0, max_value=100),
        has_domain=st.booleans(),
    ),
    max_size=8,
    unique_by=lambda candidate: candidate.id,
)
_demands = st.builds(
    PlacementRequest,
    adapter_bytes=_sizes,
    domain_bytes=_sizes,
    replicas=st.integers(min_value=0, max_value=10),
)


def _candidate(
    id_: str, *, capacity: int = 1000, placed: int = 0, load: int = 0, holds: bool = False
) -> Candidate:
    return Candidate(id=id_, capacity_bytes=capacity, placed_bytes=placed, load=load, has_domain=holds)


@given(_demands, _candidates)
def test_as_many_distinct_runtimes_are_chosen_as_requested_and_available(
    demand: PlacementRequest, fleet: list[Candidate]
) -> None:
    chosen = choose_runtimes(demand, fleet)
    assert len(chosen) == len(set(chosen)) == min(demand.replicas, len(fleet))
    assert set(chosen) <= {candidate.id for candidate in fleet}


@given(_demands, _candidates, st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(
    demand: PlacementRequest, fleet: list[Candidate], shuffler: random.Random
) -> None:
    shuffled = list(fleet)
    shuffler.shuffle(shuffled)
    assert choose_runtimes(demand, shuffled) == choose_runtimes(demand, fleet)


@given(_demands, _candidates)
def test_no_runtime_exceeds_its_capacity_while_another_has_room(
    demand: PlacementRequest, fleet: list[Candidate]
) -> None:
    room = {c.id for c in fleet if c.free_bytes >= demand.bytes_to_download(c)}
    chosen = set(choose_runtimes(demand, fleet))
    assert chosen <= room or room <= chosen


@given(_demands, _candidates)
def test_among_runtimes_with_room_those_with_the_domain_are_preferred(
    demand: PlacementRequest, fleet: list[Candidate]
) -> None:
    room = [c for c in fleet if c.free_bytes >= demand.bytes_to_download(c)]
    chosen = set(choose_runtimes(demand, fleet))
    holders = {c.id for c in room if c.has_domain}
    copied = {c.id for c in room if not c.has_domain and c.id in chosen}
    assert demand.domain_bytes == 0 or not copied or holders <= chosen


def test_a_runtime_with_the_domain_is_preferred_to_an_emptier_one() -> None:
    fleet = [_candidate("empty"), _candidate("holder", placed=500, load=9, holds=True)]
    assert choose_runtimes(PlacementRequest(adapter_bytes=10, domain_bytes=100, replicas=1), fleet) == (
        "holder",
    )


def test_a_runtime_with_room_is_preferred_to_a_full_one_with_the_domain() -> None:
    fleet = [_candidate("empty"), _candidate("holder", placed=1000, holds=True)]
    assert choose_runtimes(PlacementRequest(adapter_bytes=10, domain_bytes=100, replicas=1), fleet) == (
        "empty",
    )


def test_among_equally_full_runtimes_the_less_busy_is_preferred() -> None:
    fleet = [_candidate("busy", load=5), _candidate("calm", placed=1)]
    assert choose_runtimes(PlacementRequest(adapter_bytes=10, domain_bytes=0, replicas=1), fleet) == ("calm",)


def test_when_none_has_room_the_least_overfilled_is_chosen() -> None:
    fleet = [_candidate("worse", placed=3000), _candidate("better", placed=2000)]
    assert choose_runtimes(PlacementRequest(adapter_bytes=10, domain_bytes=0, replicas=1), fleet) == (
        "better",
    )
