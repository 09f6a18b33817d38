"""What a Domain's run reads of its children's traffic: which windows are its own, and which a child's."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from hmi_control_plane.catalog.runs import get_run
from hmi_control_plane.settings import WindowCountSettings
from hmi_control_plane.window_counts.arrays import KeyCounts
from hmi_control_plane.window_counts.privacy import Place, split_by_place
from hmi_control_plane.window_counts.reading import read_window_counts

counted = st.dictionaries(st.integers(0, 9), st.integers(1, 9), max_size=6)
places = st.lists(
    st.tuples(counted, st.dictionaries(st.sampled_from("abcde"), counted), st.none() | st.integers(1, 9)),
    min_size=1,
    max_size=4,
)
Parts = list[tuple[dict[int, int], dict[str, dict[int, int]], int | None]]


def key_counts(counts: dict[int, int]) -> KeyCounts:
    keys = sorted(counts)
    return KeyCounts(np.array(keys, np.int64), np.array([counts[key] for key in keys], np.int64))


def split(parts: Parts, least: int) -> tuple[dict[int, int], dict[int, int]]:
    made = [
        Place(key_counts(own), {name: key_counts(counts) for name, counts in others.items()}, takes_in_from)
        for own, others, takes_in_from in parts
    ]
    kept, theirs = split_by_place(made, least)
    return tuple(  # type: ignore[return-value]
        dict(zip(found.keys.tolist(), found.counts.tolist(), strict=True)) for found in (kept, theirs)
    )


def reference(parts: Parts, least: int) -> tuple[dict[int, int], dict[int, int]]:
    """Return the same, window by window."""
    kept, theirs = {}, {}
    for window in range(10):
        names = {name for _, others, _ in parts for name, counts in others.items() if window in counts}
        admitted = len(names) >= least
        sums = Counter[int]()
        for number, (own, others, _) in enumerate(parts):
            sums[number] += own.get(window, 0)
            sums[number] += sum(counts.get(window, 0) for counts in others.values()) * admitted
        asked = [number for number, count in sums.items() if count]
        takes_in_from = parts[asked[0]][2] if len(asked) == 1 else None
        belongs = takes_in_from is not None and sums[asked[0]] >= takes_in_from
        if asked:
            (theirs if belongs else kept)[window] = sums.total()
    return kept, theirs


@settings(deadline=None, max_examples=150)
@given(parts=places, least=st.integers(1, 4))
def test_a_window_belongs_to_a_child_that_alone_looked_it_up(parts: Parts, least: int) -> None:
    assert split(parts, least) == reference(parts, least)


@settings(deadline=None, max_examples=100)
@given(parts=places, least=st.integers(2, 4), text=counted, at=st.integers(0, 3))
def test_a_tenants_text_moves_nothing_where_too_few_others_share_it(
    parts: Parts, least: int, text: dict[int, int], at: int
) -> None:
    before = split(parts, least)
    at %= len(parts)
    more = [
        (own, {**others, "new": text} if number == at else others, takes_in_from)
        for number, (own, others, takes_in_from) in enumerate(parts)
    ]
    after = split(more, least)
    for window in range(10):
        if [one.get(window) for one in before] != [one.get(window) for one in after]:
            names = {name for _, others, _ in more for name, counts in others.items() if window in counts}
            assert len(names) >= least


@pytest.fixture
def tree(traffic: Any) -> Any:
    """Publishes children of acme/trade; ``layers`` defaults to their parent's."""
    cluster = traffic.cluster
    layers_of_parent = "layers-acme-trade-1"

    def publish(
        name: str, *, parent: str = "acme/trade", tenant: str = "acme", layers: str = layers_of_parent
    ) -> str:
        cluster.publish_domain(name, tenant=tenant, layers=layers, parent=parent, refreshed=True)
        return f"{tenant}/{name}"

    return publish


def read(traffic: Any, **query: Any) -> tuple[dict[int, int], list[int]]:
    run = traffic.run()
    theirs = np.frombuffer(traffic.read(run, children=True, **query).belongs_to_child, "<i8").tolist()
    return traffic.windows(run, children=True, **query), theirs


def test_a_run_reads_so_many_windows_however_many_children_there_are(traffic: Any, tree: Any) -> None:
    for number in range(4):
        windows = {100 * number + frequency: frequency for frequency in range(2, 12)}
        traffic.sent({"acme": windows}, domain=tree(f"child{number}"))
    run = traffic.run()
    traffic.read(run)  # merges the reports
    bounds = WindowCountSettings(windows_per_domain=10)
    with traffic.database.read() as session:
        found = read_window_counts(session, get_run(session, run), bounds, 1000, children=True)
    theirs = np.frombuffer(found.belongs_to_child, "<i8").tolist()
    assert found.windows == 0
    assert theirs == [100 * number + frequency for number in range(4) for frequency in range(7, 12)]


def test_children_of_other_tenants_cost_no_statements(traffic: Any, tree: Any) -> None:
    run = traffic.run()
    counts = []
    for number in range(6):
        child = tree(f"child{number}", tenant="bolt")
        traffic.sent({"acme": {number: 1}}, domain=child)
        traffic.read(run)  # merges the report
        with traffic.database.read() as session:
            statements: list[str] = []
            listener = ("before_cursor_execute", lambda *call: statements.append(call[2]))  # noqa: B023
            event.listen(traffic.database.engine, *listener)
            found = read_window_counts(
                session, get_run(session, run), WindowCountSettings(), 1000, children=True
            )
            event.remove(traffic.database.engine, *listener)
        assert found.windows == number + 1
        counts.append(len(statements))
    assert counts[-1] == counts[0]


@settings(deadline=None, max_examples=100)
@given(parts=places, least=st.integers(1, 4))
def test_places_that_take_in_nothing_need_not_be_told_apart(parts: Parts, least: int) -> None:
    own, others = Counter[int](), {}
    apart = []
    for part in parts:
        if part[2] is not None:
            apart.append(part)
            continue
        own += Counter(part[0])
        for name, counts in part[1].items():
            others[name] = others.get(name, Counter()) + Counter(counts)
    assert split([(own, others, None), *apart], least) == split(parts, least)


def test_windows_of_several_children_are_their_parents(traffic: Any, tree: Any) -> None:
    one, other = tree("one"), tree("other")
    traffic.sent({"acme": {1: 1}})
    traffic.sent({"acme": {2: 5, 3: 7, 1: 9, 4: 1}}, domain=one)
    traffic.sent({"acme": {2: 5}}, domain=other)
    # A run of the child takes a window in from two lookups on, so the parent keeps what had one.
    assert read(traffic) == ({1: 10, 2: 10, 4: 1}, [3])
    assert traffic.windows(traffic.run()) == {1: 1}  # a trainer that does not ask for children


def test_a_grandchilds_windows_are_its_parents(traffic: Any, tree: Any) -> None:
    one = tree("one")
    deep = tree("deep", parent=one)
    traffic.sent({"acme": {2: 5, 3: 1}}, domain=deep)
    traffic.sent({"acme": {2: 5, 3: 1}}, domain=one)
    assert read(traffic) == ({}, [2, 3])


def test_children_with_other_layers_share_nothing(traffic: Any, tree: Any) -> None:
    traffic.sent({"acme": {2: 5}}, domain=tree("own", layers="layers-of-its-own"))
    assert read(traffic) == ({}, [])


def test_other_tenants_are_counted_over_all_children(traffic: Any, tree: Any) -> None:
    one, other = tree("one"), tree("other", tenant="bolt")
    traffic.sent({"cog": {2: 5, 3: 1}, "dial": {2: 5}}, domain=one)
    traffic.sent({"bolt": {2: 5, 4: 9}, "acme": {5: 9}}, domain=other)
    # Window 4 is bolt's alone. Window 5 stays: bolt's child may not read what acme alone looked up.
    assert read(traffic) == ({2: 15, 5: 9}, [])


def test_a_child_that_is_not_refreshed_takes_nothing_in(traffic: Any, tree: Any) -> None:
    traffic.cluster.publish_domain("still", layers="layers-acme-trade-1", parent="acme/trade")
    traffic.sent({"acme": {2: 5}}, domain="acme/still")
    assert read(traffic) == ({2: 5}, [])
