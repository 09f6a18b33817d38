"""The sketch of misses never counts too low, seldom too high, and lists the most frequent keys."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmi_runtime.tables.misses import MissSketch, RecentWindows


def count(sketch: MissSketch, keys: np.ndarray, batch: int = 64) -> None:
    for start in range(0, len(keys), batch):
        sketch.add(*np.unique(keys[start : start + batch], return_counts=True))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), width=st.sampled_from([8, 64, 256]), kinds=st.integers(1, 500))
def test_estimates_are_never_too_low(seed: int, width: int, kinds: int) -> None:
    keys = np.random.default_rng(seed).integers(0, kinds, 2000)
    sketch = MissSketch(width=width, depth=3, candidates=32)
    count(sketch, keys)
    distinct, true = np.unique(keys, return_counts=True)
    assert sketch.total == len(keys)
    assert np.all(sketch.estimate(distinct) >= true)


def test_estimates_are_seldom_above_the_error_bound() -> None:
    """The bound fails for a key with probability exp(-4) at most; conservative update does better."""
    keys = np.random.default_rng(0).zipf(1.2, 50_000) % (1 << 40)
    sketch = MissSketch(width=512, depth=4)
    count(sketch, keys)
    distinct, true = np.unique(keys, return_counts=True)
    above = sketch.estimate(distinct) - true > np.e / 512 * sketch.total
    assert above.mean() <= np.exp(-4)


def test_the_most_frequent_keys_come_first() -> None:
    random = np.random.default_rng(1)
    frequent = np.repeat(np.arange(10), np.arange(300, 200, -10))
    keys = np.concatenate([frequent, random.integers(1000, 1_000_000, 5000)])
    random.shuffle(keys)
    sketch = MissSketch(width=1 << 14, candidates=64)
    count(sketch, keys)
    keys_found, estimates = sketch.frequent(10)
    assert keys_found.tolist() == list(range(10))
    assert estimates.tolist() == list(range(300, 200, -10))


def test_an_empty_sketch_has_no_frequent_keys() -> None:
    sketch = MissSketch()
    sketch.add(np.empty(0, np.int64), np.empty(0, np.int64))
    assert len(sketch.frequent(5)[0]) == 0


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(0, 9),
    batches=st.lists(st.sets(st.integers(0, 30), min_size=1, max_size=12), max_size=30),
)
def test_recent_windows_return_only_added_windows(rows: int, batches: list[set[int]]) -> None:
    recent = RecentWindows(2 * rows * 3 * 2 * 4, 2, torch.device("cpu"))
    for turn in batches:
        keys = torch.tensor(sorted(turn))
        found, outputs = recent.find(keys)
        assert torch.equal(outputs, keys[found, None, None].expand(-1, 3, 2).float())
        fresh = keys[~found]
        recent.add(fresh, fresh[:, None, None].expand(-1, 3, 2).float())
        known, _ = recent.find(keys)
        assert int(known.sum()) >= min(len(fresh), rows)


def test_a_window_that_is_found_again_stays_longer() -> None:
    recent = RecentWindows(2 * 4 * 3 * 1 * 4, 1, torch.device("cpu"))
    recent.add(torch.tensor([100]), torch.full((1, 3, 1), 100.0))
    for key in range(40):
        recent.add(torch.tensor([key]), torch.full((1, 3, 1), float(key)))
        found, outputs = recent.find(torch.tensor([100]))
        assert found.tolist() == [True]
        assert outputs.unique().tolist() == [100.0]
    assert recent.find(torch.tensor([0, 5]))[0].tolist() == [False, False]
