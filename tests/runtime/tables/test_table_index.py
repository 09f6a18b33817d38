"""Keys are a bijection, and the index finds exactly the inserted keys."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmi_api.errors import InvalidInput
from hmi_runtime.models.windows import MAX_VOCABULARY, check_vocabulary, pack, unpack
from hmi_runtime.tables.index import HashIndex

ANY_KEY = st.integers(0, 2**63 - 1)


@st.composite
def vocabulary_and_windows(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    size = draw(st.sampled_from([1, 2, 7, 30_522, 300_000, MAX_VOCABULARY]))
    token = st.integers(-1, size - 1)
    return size, draw(st.lists(st.lists(token, min_size=3, max_size=3), min_size=1, max_size=30))


@given(vocabulary_and_windows())
def test_unpacking_reverses_packing(case: tuple[int, list[list[int]]]) -> None:
    size, windows = case
    keys = pack(torch.tensor(windows), size)
    assert unpack(keys, size).tolist() == windows
    assert int(keys.min()) >= 0
    assert int(keys.max()) < (size + 1) ** 3 <= 2**63


def test_packing_uses_every_key_of_a_small_vocabulary() -> None:
    windows = torch.cartesian_prod(*[torch.arange(-1, 4)] * 3)
    assert pack(windows, 4).tolist() == list(range(125))


@pytest.mark.parametrize("size", [0, MAX_VOCABULARY + 1])
def test_a_vocabulary_too_small_or_too_large_for_keys_is_refused(size: int) -> None:
    with pytest.raises(InvalidInput, match="VocabularyTooLarge"):
        check_vocabulary(size)


@settings(deadline=None)
@given(
    stored=st.sets(ANY_KEY | st.integers(0, 50), max_size=200),
    queries=st.lists(ANY_KEY | st.integers(-3, 60)),
)
def test_the_index_finds_the_same_keys_as_a_dict(stored: set[int], queries: list[int]) -> None:
    keys = list(stored)
    index = HashIndex.build(torch.tensor(keys, dtype=torch.int64))
    reference = {key: row for row, key in enumerate(keys)}
    wanted = queries + keys
    expected = [reference.get(key, -1) for key in wanted]
    assert index.find(torch.tensor(wanted, dtype=torch.int64)).tolist() == expected


@settings(deadline=None)
@given(st.lists(st.sets(st.integers(0, 10_000), max_size=40), min_size=1, max_size=6))
def test_keys_inserted_in_turns_are_all_found(turns: list[set[int]]) -> None:
    index = HashIndex.with_room(sum(len(turn) for turn in turns))
    reference: dict[int, int] = {}
    for turn in turns:
        new = sorted(turn - reference.keys())
        rows = range(len(reference), len(reference) + len(new))
        index.insert(torch.tensor(new, dtype=torch.int64), torch.tensor(list(rows), dtype=torch.int32))
        reference.update(zip(new, rows, strict=True))
    queries = torch.arange(10_000)
    assert index.find(queries).tolist() == [reference.get(key, -1) for key in range(10_000)]
    index.clear()
    assert index.find(queries).unique().tolist() == [-1]


def test_keys_that_differ_in_few_bits_spread_evenly() -> None:
    """Real windows are small numbers in sequence; with a poor hash, lookups would probe many buckets."""
    index = HashIndex.build(pack(torch.cartesian_prod(*[torch.arange(40)] * 3), 30_522))
    assert index.probes <= 6
    assert len(index.slots) * 4 - 64_000 < 4, "load is a half"
