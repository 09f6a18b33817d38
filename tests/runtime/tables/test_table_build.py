"""A table has the corpus's frequent windows, is the same every time, and is built in bounded memory."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tables import CORPUS, LAYERS, VOCABULARY, Window, build, counted, layers

from hmi_api.resources.domain import OnMiss, TableDtype
from hmi_runtime.models.windows import ABSENT, unpack
from hmi_runtime.tables.build import KeyCounter
from hmi_runtime.tables.lookup import TreeLookup
from hmi_runtime.tables.table import TABLE_FILE


def true_counts(corpus: list[list[int]]) -> Counter[Window]:
    return Counter(
        window for row in corpus for window in zip([ABSENT, *row], row, [*row[1:], ABSENT], strict=False)
    )


def test_all_windows_are_counted_including_those_at_the_edges(tmp_path: Path) -> None:
    table, report = build(tmp_path)
    assert counted(table) == dict(true_counts(CORPUS))
    assert counted(table)[(ABSENT, 1, 5)] == 4
    assert table.counts.tolist() == sorted(table.counts.tolist(), reverse=True)
    assert (report.entries, report.trigrams, report.undercount) == (len(table.keys), len(table.keys), 0)
    assert report.windows_seen == sum(len(row) for row in CORPUS)


@pytest.mark.parametrize(("dtype", "tolerance"), [(TableDtype.FLOAT16, 4e-3), (TableDtype.INT8, 2e-2)])
def test_values_equal_the_layers_outputs(tmp_path: Path, dtype: TableDtype, tolerance: float) -> None:
    table, _ = build(tmp_path, dtype=dtype)
    outputs = table.gather(torch.arange(table.entries))
    truth = layers().window_outputs(unpack(table.keys, VOCABULARY))
    torch.testing.assert_close(outputs, truth, rtol=0, atol=tolerance)


def test_the_most_frequent_windows_are_stored_and_ties_go_to_the_lower_key(tmp_path: Path) -> None:
    everything, _ = build(tmp_path / "all")
    some, _ = build(tmp_path / "some", max_entries=5)
    assert some.keys.tolist() == everything.keys[:5].tolist()
    frequent, _ = build(tmp_path / "frequent", min_frequency=3)
    assert counted(frequent) == {w: n for w, n in true_counts(CORPUS).items() if n >= 3}


def test_the_same_corpus_gives_the_same_file(tmp_path: Path) -> None:
    build(tmp_path / "a")
    build(tmp_path / "b")
    assert (tmp_path / "a" / TABLE_FILE).read_bytes() == (tmp_path / "b" / TABLE_FILE).read_bytes()


def test_a_corpus_without_frequent_windows_gives_an_empty_table(tmp_path: Path) -> None:
    table, report = build(tmp_path, min_frequency=100)
    assert (table.entries, report.entries) == (0, 0)
    lookup = TreeLookup([table], layers(), layers_digest=LAYERS, on_miss=OnMiss.COMPUTE)
    assert lookup.lookup(np.array([156])).outputs.shape == (1, 3, 8)


def test_windows_of_an_ancestor_with_the_same_layers_are_left_out(tmp_path: Path) -> None:
    parent, _ = build(tmp_path / "parent", min_frequency=3)
    child, _ = build(tmp_path / "child", ancestors=[parent])
    assert counted(child) == {w: n for w, n in true_counts(CORPUS).items() if n < 3}
    retrained, _ = build(tmp_path / "retrained", ancestors=[parent], layers_digest="sha256:retrained")
    assert retrained.entries == len(true_counts(CORPUS))
    backoff, _ = build(tmp_path / "backoff", ancestors=[parent], on_miss=OnMiss.BACKOFF)
    assert counted(backoff).keys() >= counted(parent).keys()


def test_backoff_tables_contain_bigrams_and_unigrams(tmp_path: Path) -> None:
    table, report = build(tmp_path, on_miss=OnMiss.BACKOFF)
    counts = counted(table)
    assert counts[(ABSENT, 5, ABSENT)] == 4
    assert counts[(5, 6, ABSENT)] == counts[(ABSENT, 5, 6)] == 3
    assert counts[(5, 6, 7)] == 2
    assert counts.keys() >= true_counts(CORPUS).keys()
    assert report.entries == report.unigrams + report.bigrams + report.trigrams == len(counts)
    assert report.unigrams == len({token for row in CORPUS for token in row})


def test_backoff_limits_each_form_to_its_share(tmp_path: Path) -> None:
    _, report = build(tmp_path, on_miss=OnMiss.BACKOFF, max_entries=10)
    assert (report.unigrams, report.bigrams, report.trigrams) == (2, 3, 5)


def test_progress_ends_with_all_rows(tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    table, _ = build(tmp_path, progress=lambda done, total: reported.append((done, total)))
    assert reported[-1] == (table.entries, table.entries)


@settings(deadline=None, max_examples=40)
@given(keys=st.lists(st.integers(0, 60), max_size=400), limit=st.integers(2, 80), piece=st.integers(1, 50))
def test_counts_are_too_low_by_at_most_the_stated_bound(keys: list[int], limit: int, piece: int) -> None:
    counter = KeyCounter(limit)
    for start in range(0, len(keys), piece):
        counter.add(np.array(keys[start : start + piece], dtype=np.int64))
    found_keys, found_counts = counter.counts()
    found = dict(zip(found_keys.tolist(), found_counts.tolist(), strict=True))
    true = Counter(keys)
    assert counter.total == len(keys)
    assert len(found) <= limit
    assert all(true[key] - counter.undercount <= found.get(key, 0) <= true[key] for key in range(61))
    if len(true) <= limit:
        assert counter.undercount == 0
        assert found == dict(true)


def test_counting_keeps_at_most_the_limit_of_keys_in_memory() -> None:
    counter = KeyCounter(limit=100)

    def stream() -> Iterator[np.ndarray]:
        for start in range(0, 20_000, 50):
            yield np.concatenate([np.arange(start, start + 50), np.array([7, 7, 7])])

    for keys in stream():
        counter.add(keys)
    found_keys, found_counts = counter.counts()
    assert found_keys[0] == 7
    assert 1200 - counter.undercount <= found_counts[0] <= 1201
