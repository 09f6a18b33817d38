"""A refreshed table: what comes in and goes, what is copied, and that it is the same each time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tables import LAYERS, VOCABULARY, Window, build, counted, layers

from hmi_api.resources.domain import OnMiss, TableDtype
from hmi_runtime.models.windows import ABSENT, pack, unpack
from hmi_runtime.tables.refresh import RefreshReport, Traffic, refresh_table
from hmi_runtime.tables.table import TABLE_FILE, PlotTable

NEW, RARE, SEEN = (9, 10, 11), (12, 13, 14), (5, 6, 7)


def traffic(counts: dict[Window, int], since: int = 0) -> Traffic:
    windows = torch.tensor(list(counts), dtype=torch.int64).reshape(-1, 3)
    keys = pack(windows, VOCABULARY).numpy()
    return Traffic(keys, np.array(list(counts.values()), dtype=np.int64), since)


def refresh(
    folder: Path, present: PlotTable, seen: Traffic, **options: object
) -> tuple[PlotTable, RefreshReport]:
    folder.mkdir(exist_ok=True)
    chosen = {"max_entries": 1000, "min_frequency": 2, **options}
    report = refresh_table(folder, present, seen, layers(), **chosen)  # type: ignore[arg-type]
    return PlotTable.load(folder), report


def test_frequent_misses_come_in_and_rare_ones_do_not(tmp_path: Path) -> None:
    present, _ = build(tmp_path / "present")
    table, report = refresh(tmp_path / "next", present, traffic({NEW: 2, RARE: 1, SEEN: 5}))
    assert counted(table).keys() - counted(present).keys() == {NEW}
    assert counted(present).keys() <= counted(table).keys()
    assert (report.windows_in, report.windows_out, report.entries) == (1, 0, present.entries + 1)
    assert (report.coverage_before, report.coverage) == (5 / 8, 7 / 8)
    expected = layers().window_outputs(torch.tensor([NEW]))
    row = table.find(pack(torch.tensor([NEW]), VOCABULARY))
    torch.testing.assert_close(table.gather(row), expected, rtol=0, atol=4e-3)


def test_cold_windows_make_room(tmp_path: Path) -> None:
    present, _ = build(tmp_path / "present", max_entries=4)
    busy = {(9, 10, 11): 50, (10, 11, 12): 40}
    table, report = refresh(tmp_path / "next", present, traffic(busy), max_entries=4)
    assert table.entries == 4
    assert list(counted(table))[:2] == list(busy)  # the most frequent first
    assert counted(table).keys() - busy.keys() <= counted(present).keys()
    assert (report.windows_in, report.windows_out) == (2, 2)


def test_the_corpus_counts_half_after_as_many_lookups_as_it_has_windows(tmp_path: Path) -> None:
    present, _ = build(tmp_path / "present")
    total = sum(counted(present).values())
    table, _ = refresh(tmp_path / "next", present, traffic({}, since=total))
    assert counted(table) == {window: max(round(count / 2), 1) for window, count in counted(present).items()}


def test_a_window_that_traffic_forgot_leaves(tmp_path: Path) -> None:
    present, _ = build(tmp_path / "present")
    warm, _ = refresh(tmp_path / "warm", present, traffic({NEW: 9}))
    assert counted(warm)[NEW] == 0
    cold, report = refresh(tmp_path / "cold", warm, traffic({}))
    assert counted(cold) == counted(present)
    assert (report.windows_in, report.windows_out) == (0, 1)


def test_without_traffic_nothing_changes(tmp_path: Path) -> None:
    build(tmp_path / "present")
    present = PlotTable.load(tmp_path / "present")
    _, report = refresh(tmp_path / "next", present, traffic({}))
    assert (report.windows_in, report.windows_out) == (0, 0)
    assert (tmp_path / "next" / TABLE_FILE).read_bytes() == (tmp_path / "present" / TABLE_FILE).read_bytes()


@pytest.mark.parametrize("dtype", TableDtype)
def test_rows_that_stay_are_copied_and_the_file_is_the_same_each_time(
    tmp_path: Path, dtype: TableDtype
) -> None:
    present, _ = build(tmp_path / "present", dtype=dtype)
    marked = PlotTable(
        present.index,
        present.keys,
        present.counts,
        present.values.clone().fill_(3),
        None if present.scales is None else present.scales.clone().fill_(0.5),
        VOCABULARY,
        LAYERS,
    )  # values that no layer computes
    seen = traffic({NEW: 3, SEEN: 2}, since=7)
    table, _ = refresh(tmp_path / "a", marked, seen, dtype=dtype)
    refresh(tmp_path / "b", marked, seen, dtype=dtype)
    assert (tmp_path / "a" / TABLE_FILE).read_bytes() == (tmp_path / "b" / TABLE_FILE).read_bytes()
    stays = marked.find(table.keys) >= 0
    assert bool((table.values[stays] == 3).all())
    assert not bool((table.values[~stays] == 3).all())
    assert table.scales is None or bool((table.scales[stays] == 0.5).all())


def test_windows_of_an_ancestor_with_the_same_layers_stay_out(tmp_path: Path) -> None:
    parent, _ = build(tmp_path / "parent", min_frequency=3)
    present, _ = build(tmp_path / "present", min_frequency=1)
    table, report = refresh(tmp_path / "next", present, traffic({NEW: 2, SEEN: 9}), ancestors=[parent])
    assert not counted(table).keys() & counted(parent).keys()
    assert NEW in counted(table)
    assert report.coverage == 1


def test_windows_that_belong_to_a_child_leave_and_do_not_come_in(tmp_path: Path) -> None:
    present, _ = build(tmp_path / "present")
    theirs = traffic({SEEN: 1, NEW: 1}).keys
    seen = replace(traffic({(1, 5, 6): 3}), belongs_to_child=theirs)
    table, report = refresh(tmp_path / "next", present, seen)
    assert counted(present).keys() - counted(table).keys() == {SEEN}
    assert (report.windows_in, report.windows_out) == (0, 1)
    # An approximate answer may need any window of an ancestor.
    backoff, _ = build(tmp_path / "backoff", on_miss=OnMiss.BACKOFF)
    table, _ = refresh(tmp_path / "same", backoff, seen, on_miss=OnMiss.BACKOFF)
    assert SEEN in counted(table)


def test_each_window_of_a_tree_is_stored_once(tmp_path: Path) -> None:
    """A parent and two children: what both look up moves to the parent, the rest to the child that asks."""
    both, first, second = (9, 10, 11), (12, 13, 14), SEEN
    parent, _ = build(tmp_path / "parent")
    empty, _ = build(tmp_path / "empty", min_frequency=9)
    asked = [traffic({both: 4, first: 3}), traffic({both: 5, second: 2})]
    children = [
        refresh(tmp_path / f"before{at}", empty, seen, ancestors=[parent])[0] for at, seen in enumerate(asked)
    ]
    before = [hits(seen, [child, parent]) for child, seen in zip(children, asked, strict=True)]
    assert before == [7, 7]
    shared = replace(traffic({both: 9}), belongs_to_child=traffic({first: 1, second: 1}).keys)
    parent, _ = refresh(tmp_path / "shared", parent, shared)
    children = [
        refresh(tmp_path / f"after{at}", child, seen, ancestors=[parent])[0]
        for at, (child, seen) in enumerate(zip(children, asked, strict=True))
    ]
    stored = [counted(table).keys() & {both, first, second} for table in (parent, *children)]
    assert stored == [{both}, {first}, {second}]
    assert [hits(seen, [child, parent]) for child, seen in zip(children, asked, strict=True)] == before
    for table in (parent, *children):
        exact = layers().window_outputs(unpack(table.keys, VOCABULARY))
        torch.testing.assert_close(table.values.float(), exact, rtol=0, atol=4e-3)


def hits(seen: Traffic, tables: list[PlotTable]) -> int:
    found = torch.stack([table.find(torch.from_numpy(seen.keys)) >= 0 for table in tables if table.entries])
    return int(seen.counts[found.any(dim=0).numpy()].sum())


def test_backoff_counts_shorter_windows_and_keeps_their_shares(tmp_path: Path) -> None:
    present, _ = build(tmp_path / "present", on_miss=OnMiss.BACKOFF, max_entries=10)
    table, _ = refresh(tmp_path / "next", present, traffic({NEW: 99}), on_miss=OnMiss.BACKOFF, max_entries=10)
    assert {NEW, (9, 10, ABSENT), (ABSENT, 10, 11), (ABSENT, 10, ABSENT)} <= counted(table).keys()
    absent = (unpack(table.keys, VOCABULARY) == ABSENT).sum(dim=1)
    assert [int((absent == form).sum()) for form in (2, 1, 0)] == [2, 3, 5]


def reference(
    present: dict[Window, int], seen: dict[Window, int], since: int, most: int, least: int
) -> list[Window]:
    """The windows of the next table, most frequent first, in plain Python."""
    total = sum(present.values())
    weight = total / (total + since) if total else 0.0
    scores = {window: max(round(count * weight), 1) for window, count in present.items()}
    for window, count in seen.items():
        if count >= least or window in present:
            scores[window] = scores.get(window, 0) + count
    key = {window: int(pack(torch.tensor([window]), VOCABULARY)) for window in scores}
    ranked = sorted(scores, key=lambda window: (-scores[window], window not in present, key[window]))
    return [window for window in ranked if scores[window] > 0][:most]


@settings(deadline=None, max_examples=25)
@given(
    seen=st.dictionaries(st.tuples(*[st.integers(1, 7)] * 3), st.integers(1, 6), max_size=30),
    since=st.integers(0, 60),
    most=st.integers(1, 25),
    least=st.integers(1, 4),
)
def test_the_choice_equals_the_reference(
    tmp_path_factory: pytest.TempPathFactory,
    seen: dict[Window, int],
    since: int,
    most: int,
    least: int,
) -> None:
    folder = tmp_path_factory.mktemp("refresh")
    present, _ = build(folder / "present")
    table, _ = refresh(folder / "next", present, traffic(seen, since), max_entries=most, min_frequency=least)
    assert list(counted(table)) == reference(counted(present), seen, since, most, least)
