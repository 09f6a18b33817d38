"""Arrays of windows and counts: each operation against plain dictionaries."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmi_api.errors import InvalidInput
from hmi_api.internal.window_counts import WindowArray
from hmi_control_plane.window_counts.arrays import KeyCounts, fair_limit

windows = st.dictionaries(st.integers(0, 2**63 - 1) | st.integers(0, 20), st.integers(1, 2**40), max_size=30)
quick = settings(deadline=None, max_examples=60)


def key_counts(counts: dict[int, int]) -> KeyCounts:
    keys = np.array(sorted(counts), np.int64)
    return KeyCounts(keys, np.array([counts[key] for key in sorted(counts)], np.int64))


def as_dict(found: KeyCounts) -> dict[int, int]:
    return dict(zip(found.keys.tolist(), found.counts.tolist(), strict=True))


@quick
@given(windows)
def test_compressed_windows_are_read_back(counts: dict[int, int]) -> None:
    assert as_dict(KeyCounts.from_bytes(key_counts(counts).to_bytes())) == counts


@quick
@given(st.lists(windows, max_size=4))
def test_merging_adds_the_counts(parts: list[dict[int, int]]) -> None:
    expected: Counter[int] = Counter()
    for part in parts:
        expected.update(part)
    merged = KeyCounts.merge([key_counts(part) for part in parts])
    assert as_dict(merged) == {key: min(count, 2**40) for key, count in expected.items()}
    assert np.all(np.diff(merged.keys) > 0)


@quick
@given(windows, st.integers(0, 10))
def test_the_most_frequent_windows_are_kept(counts: dict[int, int], most: int) -> None:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kept = key_counts(counts).most_frequent(most)
    assert as_dict(kept) == dict(ordered[:most])
    assert np.all(np.diff(kept.keys) > 0)


@quick
@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 200))
def test_the_fair_limit_is_the_largest_that_fits(sizes: list[int], room: int) -> None:
    limit = fair_limit(sizes, room)
    assert sum(min(size, limit) for size in sizes) <= room
    if sizes and limit < max(sizes):
        assert sum(min(size, limit + 1) for size in sizes) > room


@pytest.mark.parametrize(("key", "count"), [(-1, 1), (1, 0), (1, -5)])
def test_windows_that_cannot_be_are_refused(key: int, count: int) -> None:
    keys, counts = (np.array([number], "<i8").tobytes() for number in (key, count))
    with pytest.raises(InvalidInput, match="WindowsInvalid"):
        KeyCounts.of(WindowArray(keys=keys, counts=counts))


def test_a_window_that_is_sent_twice_is_counted_once_with_the_sum() -> None:
    keys, counts = (np.array(some, "<i8").tobytes() for some in ([7, 3, 7], [1, 2, 4]))
    assert as_dict(KeyCounts.of(WindowArray(keys=keys, counts=counts))) == {3: 2, 7: 5}
