"""Tables share a budget by demand, and never take more than it."""

import gc
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmi_api.errors import NotReady
from hmi_runtime.tables import memory as module
from hmi_runtime.tables.memory import Demand, TableMemory, share_budget
from hmi_runtime.tables.misses import RecentWindows
from hmi_runtime.tables.table import PlotTable

demands = st.lists(
    st.builds(
        Demand,
        wanted=st.integers(0, 10_000),
        lookups=st.floats(0, 1e9, allow_nan=False),
        pinned=st.booleans(),
    ),
    max_size=6,
)


@given(demands=demands, available=st.integers(-10, 20_000))
def test_shares_stay_within_the_budget_and_leave_nothing_that_is_wanted(
    demands: list[Demand], available: int
) -> None:
    shares = share_budget(demands, available)
    wanted = sum(demand.wanted for demand in demands)
    assert all(0 <= share <= demand.wanted for share, demand in zip(shares, demands, strict=True))
    assert sum(shares) <= max(0, available)
    assert sum(shares) >= min(wanted, max(0, available)) - 2 * len(demands)  # rounding


@given(demands=demands, available=st.integers(0, 20_000))
def test_a_table_that_is_looked_up_more_has_no_less(demands: list[Demand], available: int) -> None:
    shares = share_budget(demands, available)
    for one, share in zip(demands, shares, strict=True):
        for other, others in zip(demands, shares, strict=True):
            if one.pinned == other.pinned is False and one.lookups > other.lookups and share < one.wanted:
                assert share >= others - 1


def test_pinned_tables_come_first_and_others_keep_a_little() -> None:
    free, pinned = Demand(1000, 1e6), Demand(900, 0, pinned=True)
    assert share_budget([free, pinned], 1000) == [125, 875]
    assert share_budget([free, pinned], 2000) == [1000, 900]


def save_table(folder: Path, entries: int, start: int = 0) -> Path:
    folder.mkdir()
    keys = torch.arange(start, start + entries)
    outputs = torch.randn(entries, 3, 64)
    PlotTable.from_outputs(keys, outputs, vocab_size=50, layers_digest="sha256:a").save(folder)
    return folder


def test_tables_that_fit_together_are_whole_and_others_share(tmp_path: Path) -> None:
    memory = TableMemory(1_200_000)
    first = memory.open(save_table(tmp_path / "a", 2000))
    assert first.held_bytes[0] == 2000 * first.row_bytes
    second = memory.open(save_table(tmp_path / "b", 2000))
    assert memory.host_bytes <= 1_200_000
    assert 0 < second.held_bytes[0] < 2000 * second.row_bytes
    rows = torch.arange(2000)
    for table in (first, second):
        assert torch.equal(table.gather(rows), table.whole.gather(rows))
    del table, second
    gc.collect()
    memory.rebalance()
    assert first.held_bytes[0] == 2000 * first.row_bytes


def test_memory_goes_to_the_table_that_is_looked_up(tmp_path: Path) -> None:
    memory = TableMemory(600_000)
    first, second = (memory.open(save_table(tmp_path / name, 2000)) for name in "ab")
    rows = torch.arange(2000)
    for _ in range(60):
        second.gather(rows)
    memory.rebalance()
    assert second.held_bytes[0] > 2 * first.held_bytes[0] > 0
    assert memory.host_bytes <= 600_000
    memory.pin([first], 1)
    memory.rebalance()
    assert first.share[0] > second.share[0]
    memory.pin([first], -1)
    memory.rebalance()
    assert first.share[0] < second.share[0]


def test_layers_and_indexes_must_fit(tmp_path: Path) -> None:
    memory = TableMemory(100_000)
    memory.reserve("layers", 60_000)
    with pytest.raises(NotReady, match="TableBudgetFull"):
        memory.reserve("more layers", 60_000)
    with pytest.raises(NotReady, match="TableBudgetFull"):
        memory.open(save_table(tmp_path / "a", 2000))
    memory.release("layers", 60_000)
    table = memory.open(save_table(tmp_path / "b", 2000))  # 768,000 bytes of rows
    assert memory.host_bytes <= 100_000
    assert torch.equal(table.gather(torch.arange(2000)), table.whole.gather(torch.arange(2000)))


def test_layers_that_are_loaded_again_before_the_old_ones_have_gone_stay_counted() -> None:
    memory = TableMemory(100_000)
    memory.reserve("layers", 40_000)
    memory.reserve("layers", 40_000)
    memory.release("layers", 40_000)
    assert memory.host_bytes == 40_000
    memory.release("layers", 40_000)
    assert memory.host_bytes == 0


def test_layers_for_which_no_memory_could_be_freed_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = TableMemory(2_000_000)
    table = memory.open(save_table(tmp_path / "a", 2000))
    before = memory.host_bytes

    def fail(*_: object) -> None:
        raise OSError(5, "the disk cannot be read")

    with monkeypatch.context() as patched:
        patched.setattr(type(table), "set_share", fail)
        with pytest.raises(OSError, match="cannot be read"):
            memory.reserve("layers", 60_000)
    assert memory.host_bytes == before


def test_no_budget_is_exceeded_while_shares_change() -> None:
    @dataclass
    class Table:
        share: tuple[int, int]

        def set_share(self, host: int, device: int) -> None:
            self.share = (host, device)
            assert max(sum(table.share[0] for table in tables), sum(table.share[1] for table in tables)) <= 10

    tables = [Table((10, 0)), Table((0, 10)), Table((0, 0))]
    TableMemory._set_shares(tables, [1, 6, 3], [5, 2, 3])  # type: ignore[arg-type]
    assert [table.share for table in tables] == [(1, 5), (6, 2), (3, 3)]


def recent_windows() -> RecentWindows:
    return RecentWindows(0, 64, torch.device("cpu"))


def test_caches_of_computed_windows_share_an_eighth_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGEST_RECENT", 1 << 16)
    memory = TableMemory(1 << 21)  # an eighth: 1 << 18, of which four caches have the most that one may have
    caches = []
    for number in range(1, 41):
        caches.append(recent_windows())
        memory.share_with(caches[-1])
        assert sum(one.capacity_bytes for one in caches) <= 1 << 18
        assert memory.host_bytes == sum(one.held_bytes for one in caches)
        if number <= 4:
            assert {one.capacity_bytes for one in caches} == {1 << 16}
    assert {one.capacity_bytes for one in caches} == {1 << 12}
    del caches[3:]
    gc.collect()
    memory.rebalance()
    assert {one.capacity_bytes for one in caches} == {1 << 16}


def test_caches_of_computed_windows_are_not_emptied_by_a_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGEST_RECENT", 1 << 16)
    memory = TableMemory(1 << 21)
    caches = [recent_windows() for _ in range(5)]  # one more than fit at their largest
    for one in caches:
        memory.share_with(one)
    keys = torch.arange(3)
    caches[0].add(keys, torch.ones(3, 3, 64))
    for _ in range(3):
        del caches[-1]
        gc.collect()
        memory.rebalance()
        caches.append(recent_windows())
        memory.share_with(caches[-1])
    assert caches[0].find(keys)[0].all()


def test_caches_of_computed_windows_leave_room_for_what_must_fit(tmp_path: Path) -> None:
    memory = TableMemory(2_000_000)
    recent = recent_windows()
    memory.share_with(recent)
    table = memory.open(save_table(tmp_path / "a", 4000))
    assert recent.capacity_bytes > 0 < table.held_bytes[0]
    assert memory.host_bytes <= 2_000_000
    memory.reserve("layers", 2_000_000 - table.fixed_bytes)
    assert recent.capacity_bytes == 0
