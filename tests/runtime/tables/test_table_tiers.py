"""A table that is partly in memory returns the same bits as the whole one, whatever is where."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmi_api.errors import Damaged
from hmi_api.resources.domain import TableDtype
from hmi_runtime.cache.tiers import Tier
from hmi_runtime.tables.reference import admit_reference
from hmi_runtime.tables.row_storage import RowCounts, RowFile, RowTier
from hmi_runtime.tables.table import TABLE_FILE, PlotTable
from hmi_runtime.tables.tiers import TableEvents, TieredTable

VOCABULARY, WIDTH = 50, 8
CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("dtype", list(TableDtype))


@dataclass
class Recorder(TableEvents):
    found: Counter[Tier] = field(default_factory=Counter)
    admitted: Counter[Tier] = field(default_factory=Counter)
    read: int = 0

    def rows_found(self, tier: Tier, rows: int) -> None:
        self.found[tier] += rows

    def bytes_read(self, count: int) -> None:
        self.read += count

    def rows_admitted(self, tier: Tier, rows: int) -> None:
        self.admitted[tier] += rows


def save_table(folder: Path, entries: int, dtype: TableDtype = TableDtype.FLOAT16) -> PlotTable:
    generator = torch.Generator().manual_seed(entries)
    keys = torch.randperm((VOCABULARY + 1) ** 3, generator=generator)[:entries]
    outputs = torch.randn(entries, 3, WIDTH, generator=generator)
    counts = torch.arange(entries, 0, -1)
    PlotTable.from_outputs(
        keys, outputs, vocab_size=VOCABULARY, layers_digest="sha256:a", dtype=dtype, counts=counts
    ).save(folder)
    return PlotTable.load(folder)


def open_table(folder: Path, events: TableEvents | None = None) -> TieredTable:
    return TieredTable(folder, most_bytes=1 << 20, device=CPU, events=events)


shares = st.tuples(st.sampled_from([0, 1, 7, 30, 99, 100, 200]), st.sampled_from([0, 0, 1, 12]))
steps = st.lists(
    st.one_of(shares, st.lists(st.one_of(st.integers(-1, 99), st.integers(90, 99)), max_size=40)),
    min_size=1,
    max_size=25,
)


@settings(deadline=None, max_examples=60)
@given(dtype=st.sampled_from(list(TableDtype)), steps=steps)
def test_every_share_and_every_order_of_lookups_gives_the_same_bits(
    dtype: TableDtype, steps: list[tuple[int, int] | list[int]]
) -> None:
    with TemporaryDirectory() as name:
        whole = save_table(Path(name), 100, dtype)
        table = open_table(Path(name))
        for step in steps:
            if isinstance(step, tuple):
                table.set_share(*(rows * table.row_bytes for rows in step))
                continue
            rows = torch.tensor(step, dtype=torch.int64)
            real = rows >= 0
            assert torch.equal(table.gather(rows)[real], whole.gather(rows)[real])
            host, device = table.held_bytes
            assert host <= max(table.share[0], 0) or table.share == (0, 0)
            assert device <= table.share[1]


@BOTH
def test_a_share_is_filled_with_the_most_frequent_rows_first(dtype: TableDtype, tmp_path: Path) -> None:
    save_table(tmp_path, 100, dtype)
    events = Recorder()
    table = open_table(tmp_path, events)
    table.set_share(30 * table.row_bytes)
    table.gather(torch.arange(30))
    assert (events.found, events.read) == ({Tier.HOST: 30}, 0)
    table.gather(torch.tensor([29, 30, 31, 30, -1]))
    assert events.found == {Tier.HOST: 31, Tier.DISK: 3}
    assert events.read == 2 * (table.row_bytes - 8), "each row is read once"


def test_rows_that_are_looked_up_often_replace_others(tmp_path: Path) -> None:
    save_table(tmp_path, 1000)
    events = Recorder()
    table = open_table(tmp_path, events)
    table.set_share(50 * table.row_bytes)
    popular = torch.arange(900, 940)
    for _ in range(400):
        table.gather(popular)
    before = events.found[Tier.DISK]
    table.gather(popular)
    assert events.found[Tier.DISK] == before
    assert events.admitted[Tier.HOST] >= 40


def test_a_row_that_was_seen_once_does_not_replace_a_frequent_one(tmp_path: Path) -> None:
    save_table(tmp_path, 1000)
    events = Recorder()
    table = open_table(tmp_path, events)
    table.set_share(50 * table.row_bytes)
    for _ in range(20):
        table.gather(torch.arange(50))
    for start in range(50, 1000, 50):  # a scan of everything else
        table.gather(torch.arange(start, start + 50))
    before = events.found[Tier.DISK]
    table.gather(torch.arange(50))
    assert events.found[Tier.DISK] == before


def test_a_share_that_shrinks_keeps_the_rows_looked_up_most(tmp_path: Path) -> None:
    save_table(tmp_path, 1000)
    events = Recorder()
    table = open_table(tmp_path, events)
    table.set_share(400 * table.row_bytes)
    popular = torch.arange(360, 400)
    for _ in range(60):
        table.gather(popular)
    table.set_share(100 * table.row_bytes)
    assert table.held_bytes[0] <= 100 * table.row_bytes
    table.gather(popular)
    assert events.found[Tier.DISK] == 0


def test_memory_that_a_share_loses_goes_back_to_the_system(tmp_path: Path) -> None:
    rows, width = 4000, 768
    PlotTable.from_outputs(
        torch.arange(rows), torch.randn(rows, 3, width), vocab_size=VOCABULARY, layers_digest="sha256:a"
    ).save(tmp_path)
    tier = RowTier(rows, rows, width, torch.float16, CPU)
    counts = np.zeros(rows, np.uint8)
    tier.resize(rows, counts)
    tier.fill(RowFile(tmp_path / TABLE_FILE, tier.row_bytes))
    full = _resident_bytes()
    tier.resize(100, counts)
    assert full - _resident_bytes() > 0.8 * (rows - 100) * tier.row_bytes


def _resident_bytes() -> int:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")
    )
    return int(line.split()[1]) * 1024


def test_threads_get_the_right_rows_while_shares_change(tmp_path: Path) -> None:
    whole = save_table(tmp_path, 500)
    table = open_table(tmp_path)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randint(500, (64,), generator=generator) for _ in range(300)]

    def change(number: int) -> None:
        host, device = [(50, 0), (200, 20), (10, 5), (500, 0)][number % 4]
        table.set_share(host * table.row_bytes, device * table.row_bytes)

    with ThreadPoolExecutor(5) as pool:
        changes = [pool.submit(change, number) for number in range(60)]
        answers = list(pool.map(table.gather, batches))
        for made in changes:
            made.result()
    for rows, outputs in zip(batches, answers, strict=True):
        assert torch.equal(outputs, whole.gather(rows))


@settings(deadline=None)
@given(
    capacity=st.integers(0, 12),
    counts=st.lists(st.integers(0, 255), min_size=30, max_size=30),
    asks=st.lists(st.sets(st.integers(0, 29), min_size=1, max_size=10), max_size=12),
)
def test_admission_equals_the_reference(capacity: int, counts: list[int], asks: list[set[int]]) -> None:
    tier = RowTier(30, 12, WIDTH, torch.float16, CPU)
    stored = torch.randn(30, 3, WIDTH).half()
    counted = np.array(counts, np.uint8)
    tier.resize(capacity, counted)
    held: list[int] = []
    hand = 0
    for ask in asks:
        rows = np.array(sorted(ask))
        rows = rows[tier.slots(rows) < 0]
        admitted = tier.admit(rows, stored[rows], counted)
        before = set(held)
        held, hand = admit_reference(held, capacity, hand, rows.tolist(), counts)
        assert admitted == len(set(held) - before)
        slots = tier.slots(np.arange(30))
        assert [slots[row] for row in held] == list(range(len(held)))
        assert (slots >= 0).sum() == len(held)
        assert torch.equal(tier.take(slots[held]), stored[held])


def test_counts_of_rows_age_and_do_not_overflow() -> None:
    counts = RowCounts(torch.tensor([600, 300, 100, 0]), sample=100)
    assert counts.of_row.tolist() == [30, 15, 5, 0]
    counts.add(np.array([3]), np.array([49]))
    assert counts.of_row.tolist() == [30, 15, 5, 49]
    counts.add(np.array([3]), np.array([1]))  # the hundredth
    assert counts.of_row.tolist() == [15, 7, 2, 25]
    counts.add(np.array([0]), np.array([1000]))
    assert counts.of_row[0] == 127


def test_neighbours_are_read_at_once_and_in_order(tmp_path: Path) -> None:
    whole = save_table(tmp_path, 100)
    file = RowFile(tmp_path / TABLE_FILE, 3 * WIDTH * 2)
    rows = np.array([0, 1, 2, 50, 98, 99])
    read = torch.from_numpy(file.read(rows)).view(torch.float16).view(-1, 3, WIDTH)
    assert torch.equal(read, whole.values[torch.from_numpy(rows)])
    assert file.read(rows[:0]).shape == (0, file.row_bytes)


def test_a_table_that_became_shorter_is_refused(tmp_path: Path) -> None:
    save_table(tmp_path, 100)
    file = RowFile(tmp_path / TABLE_FILE, 3 * WIDTH * 2)
    path = tmp_path / TABLE_FILE
    with path.open("r+b") as target:
        target.truncate(path.stat().st_size - 10)
    with pytest.raises(Damaged, match="TableInvalid"):
        file.read(np.array([99]))
