"""The placement policy: properties that it has for any set of runtimes."""

import random

from hypothesis import given
from hypothesis import strategies as st

from hmi_control_plane.catalog.placement_policy import Candidate, PlacementRequest, Room, choose_runtimes

_sizes = st.integers(min_value=0, max_value=10_000)
_rooms = st.builds(Room, capacity=_sizes, placed=_sizes)
_candidates = st.lists(
    st.builds(
        Candidate,
        id=st.text("abcdefgh", min_size=1, max_size=4),
        host=_rooms,
        tables=_rooms,
        load=st.integers(min_value=0, max_value=100),
        has_domain=st.booleans(),
        holds_tables_in_part=st.booleans(),
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
    id_: str,
    *,
    host: tuple[int, int] = (1000, 0),
    tables: tuple[int, int] = (1000, 0),
    load: int = 0,
    holds: bool = False,
    in_part: bool = True,
) -> Candidate:
    return Candidate(id_, Room(*host), Room(*tables), load, has_domain=holds, holds_tables_in_part=in_part)


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
def test_no_budget_is_exceeded_while_another_runtime_has_room(
    demand: PlacementRequest, fleet: list[Candidate]
) -> None:
    room = {c.id for c in fleet if demand.fits(c)}
    partly = room | {c.id for c in fleet if demand.fits_in_part(c)}
    chosen = set(choose_runtimes(demand, fleet))
    assert chosen <= room or room <= chosen
    assert chosen <= partly or partly <= chosen


@given(_demands, _candidates)
def test_among_runtimes_with_room_those_with_the_domain_are_preferred(
    demand: PlacementRequest, fleet: list[Candidate]
) -> None:
    room = [c for c in fleet if demand.fits(c)]
    chosen = set(choose_runtimes(demand, fleet))
    holders = {c.id for c in room if c.has_domain}
    copied = {c.id for c in room if not c.has_domain and c.id in chosen}
    assert demand.domain_bytes == 0 or not copied or holders <= chosen


def _chosen(fleet: list[Candidate], *, adapter: int = 10, domain: int = 100) -> str:
    (chosen,) = choose_runtimes(
        PlacementRequest(adapter_bytes=adapter, domain_bytes=domain, replicas=1), fleet
    )
    return chosen


def test_a_runtime_with_the_domain_is_preferred_to_an_emptier_one() -> None:
    fleet = [_candidate("empty"), _candidate("holder", tables=(1000, 500), load=9, holds=True)]
    assert _chosen(fleet) == "holder"


def test_a_runtime_with_room_for_the_adapter_is_preferred_to_a_full_one_with_the_domain() -> None:
    fleet = [_candidate("empty"), _candidate("holder", host=(1000, 1000), holds=True)]
    assert _chosen(fleet) == "empty"


def test_adapters_do_not_take_the_room_of_tables_nor_tables_that_of_adapters() -> None:
    fleet = [_candidate("tables", tables=(1000, 950)), _candidate("adapters", host=(1000, 900))]
    assert _chosen(fleet, adapter=10, domain=100) == "adapters"
    assert _chosen(fleet, adapter=200, domain=10) == "tables"


def test_on_runtimes_of_older_versions_adapters_and_tables_share_what_is_free() -> None:
    old = _candidate("old", host=(100, 0), tables=(100, 0), in_part=False)
    fleet = [old, _candidate("fuller", host=(1000, 900), tables=(1000, 900))]
    assert _chosen(fleet, adapter=60, domain=60) == "fuller"
    assert _chosen(fleet, adapter=40, domain=60) == "old"


def test_a_runtime_that_has_the_domain_needs_no_more_room_for_tables() -> None:
    fleet = [_candidate("empty"), _candidate("holder", tables=(1000, 9000), holds=True)]
    assert _chosen(fleet) == "holder"


def test_a_table_larger_than_every_budget_goes_where_most_of_it_fits() -> None:
    fleet = [
        _candidate("small", tables=(200, 0)),
        _candidate("old", tables=(900, 0), in_part=False),
        _candidate("large", tables=(900, 0), load=9),
    ]
    assert _chosen(fleet, domain=1500) == "large"
    assert _chosen(fleet[:2], domain=1500) == "small"


def test_among_equally_full_runtimes_the_less_busy_is_preferred() -> None:
    fleet = [_candidate("busy", load=5), _candidate("calm", host=(1000, 1))]
    assert _chosen(fleet, domain=0) == "calm"


def test_when_none_has_room_the_least_overfilled_is_chosen() -> None:
    fleet = [_candidate("worse", host=(1000, 3000)), _candidate("better", host=(1000, 2000))]
    assert _chosen(fleet, domain=0) == "better"
