"""The cache of computed windows returns what was added, and forgets what is not found again."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmi_runtime.tables.misses import RecentWindows


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


def test_a_cache_of_another_size_is_empty_and_has_that_room() -> None:
    recent = RecentWindows(2 * 4 * 3 * 1 * 4, 1, torch.device("cpu"))
    keys = torch.arange(8)
    recent.add(keys, torch.ones(8, 3, 1))
    assert int(recent.find(keys)[0].sum()) == 4
    recent.resize(2 * 8 * 3 * 1 * 4)
    assert not recent.find(keys)[0].any()
    recent.add(keys, torch.ones(8, 3, 1))
    assert recent.find(keys)[0].all()
    held = recent._values.nbytes + sum(one.slots.nbytes + one.rows.nbytes for one in recent._indexes)
    assert recent.held_bytes == held
