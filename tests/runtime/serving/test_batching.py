"""Which rows are computed together: fair between tenants, like lengths together, within the limits."""

import threading
from collections import Counter
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from hmi_runtime.serving.batching import Batcher, BatchLimits, BatchQueue, FairQueue, bucket_of, shape_size

LIMIT = 60.0


@dataclass(frozen=True)
class Item:
    tenant: str
    length: int
    size: int = 1
    number: int = 0


def padded(batch: list[Item]) -> int:
    return sum(item.size for item in batch) * max(item.length for item in batch)


def computed(batch: list[Item]) -> int:
    rows, longest = sum(item.size for item in batch), max(item.length for item in batch)
    return shape_size(rows) * shape_size(longest)


def tokens(batch: list[Item]) -> int:
    return sum(item.size * item.length for item in batch)


ITEMS = st.lists(
    st.builds(
        Item,
        tenant=st.sampled_from("abcdef"),
        length=st.integers(3, 512),
        size=st.integers(1, 8),
        number=st.integers(0, 1 << 30),
    ),
    max_size=80,
)


@settings(deadline=None)
@given(items=ITEMS, most_rows=st.sampled_from([8, 40]))
def test_every_item_comes_out_once_and_batches_keep_the_limits(items: list[Item], most_rows: int) -> None:
    limits = BatchLimits(max_rows=most_rows, max_tokens=1024)
    queue: BatchQueue[Item] = BatchQueue(limits)
    for item in items:
        queue.push(item)
    out: list[Item] = []
    while batch := queue.take_batch():
        assert sum(item.size for item in batch) <= most_rows
        assert computed(batch) <= 1024 or len(batch) == 1
        assert padded(batch) - tokens(batch) <= 0.15 * padded(batch) or padded(batch) <= 256
        out += batch
    assert Counter(out) == Counter(items)
    assert queue.rows == 0


@settings(deadline=None)
@given(items=ITEMS)
def test_a_tenants_items_of_one_bucket_keep_their_order(items: list[Item]) -> None:
    queue: FairQueue[Item] = FairQueue()
    for item in items:
        queue.push(item.tenant, bucket_of(item.length), item.size, item)
    out: list[Item] = []
    while (bucket := queue.next_bucket()) is not None:
        out += queue.take(bucket, lambda _: True)
    for tenant in "abcdef":
        for bucket in {bucket_of(item.length) for item in items}:
            mine = [i for i in items if i.tenant == tenant and bucket_of(i.length) == bucket]
            assert [i for i in out if i.tenant == tenant and bucket_of(i.length) == bucket] == mine


def test_buckets_grow_with_length_and_contain_similar_lengths() -> None:
    numbers = [bucket_of(length) for length in range(1, 2000)]
    assert numbers == sorted(numbers)
    for length in range(8, 2000):
        assert bucket_of(length + 1) - bucket_of(length) <= 1
        assert bucket_of(length) != bucket_of(round(1.15 * length) + 1)


def test_batches_have_few_shapes_and_little_more_than_they_need() -> None:
    sizes = [shape_size(size) for size in range(1, 513)]
    assert sizes == sorted(sizes)
    assert all(size <= made <= 1.125 * size for size, made in enumerate(sizes, 1))
    assert [shape_size(size) for size in sizes] == sizes
    assert len(set(sizes)) == 16 + 5 * 8
    assert shape_size(0) == 0


def test_a_flood_of_one_tenant_starves_nobody() -> None:
    queue: BatchQueue[Item] = BatchQueue(BatchLimits(max_rows=8))
    for number in range(1000):
        queue.push(Item("flood", 64, number=number))
    for tenant in ("b", "c", "d"):
        queue.push(Item(tenant, 64))
    first = {item.tenant for item in queue.take_batch()}
    assert {"b", "c", "d"} <= first


def test_a_flood_of_other_lengths_starves_nobody() -> None:
    queue: BatchQueue[Item] = BatchQueue(BatchLimits(max_rows=8))
    for number in range(1000):
        queue.push(Item("flood", 500, number=number))
    queue.take_batch()
    queue.push(Item("short", 5))
    assert any(item.tenant == "short" for _ in range(2) for item in queue.take_batch())


@settings(deadline=None)
@given(lengths=st.lists(st.integers(4, 120), min_size=40, max_size=40))
def test_tenants_with_full_queues_get_equal_shares(lengths: list[int]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for length in lengths:
        for tenant in "abc":
            queue.push(tenant, 0, length, (tenant, length))
    served: Counter[str] = Counter()
    for _ in range(30):
        ((tenant, length),) = queue.take(0, once())
        served[tenant] += length
    assert max(served[t] for t in "abc") - min(served[t] for t in "abc") <= 120


def test_an_idle_tenant_saves_up_no_credit() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        queue.push("busy", 0, 10, "busy")
    for _ in range(50):
        queue.take(0, once())
    for _ in range(10):
        queue.push("late", 0, 10, "late")
    order = [queue.take(0, once())[0] for _ in range(8)]
    assert Counter(order) == {"busy": 4, "late": 4}


def once():  # type: ignore[no-untyped-def]
    """Return an acceptor of only the first item."""
    answers = iter([True])
    return lambda _: next(answers, False)


def test_a_batch_starts_when_it_is_full_or_its_first_row_has_waited() -> None:
    now = [0.0]
    batcher: Batcher[Item] = Batcher(BatchLimits(max_rows=4), max_wait=5.0, clock=lambda: now[0])
    out: list[list[Item] | None] = []
    for number in range(5):
        batcher.put(Item("a", 10, number=number))
    out.append(batcher.take())
    assert [len(batch or []) for batch in out] == [4]
    taker = threading.Thread(target=lambda: out.append(batcher.take()))
    now[0] = 4.9
    taker.start()
    taker.join(0.02)
    assert len(out) == 1
    now[0] = 5.1
    batcher.put(Item("a", 10, number=9))
    taker.join(LIMIT)
    assert [len(batch or []) for batch in out] == [4, 2]


def test_a_closed_batcher_returns_its_rows_and_ends() -> None:
    batcher: Batcher[Item] = Batcher(BatchLimits(), max_wait=60.0)
    batcher.put(Item("a", 10))
    batcher.close()
    assert batcher.take() == [Item("a", 10)]
    assert batcher.take() is None


def test_rows_that_a_batch_leaves_go_to_the_next_thread_at_once() -> None:
    batcher: Batcher[Item] = Batcher(BatchLimits(max_rows=2), max_wait=60.0)
    out: list[list[Item]] = []
    both = threading.Barrier(3)

    def take() -> None:
        out.append(batcher.take() or [])
        both.wait(LIMIT)  # takes nothing more until every thread has a batch

    takers = [threading.Thread(target=take) for _ in range(2)]
    for taker in takers:
        taker.start()
    for number in range(3):
        batcher.put(Item("a", 10, number=number))
    batcher.put(Item("a", 10, number=3))
    both.wait(LIMIT)
    assert sorted(len(batch) for batch in out) == [2, 2]


@given(length=st.integers(1, 512), rows=st.integers(1, 64), most=st.integers(1, 2048))
def test_as_many_rows_of_one_text_as_a_batch_may_have(length: int, rows: int, most: int) -> None:
    limits = BatchLimits(max_rows=rows, max_tokens=most)
    found = limits.most_rows(length)
    right = [n for n in range(1, rows + 1) if shape_size(n) * shape_size(length) <= most]
    assert found == max(right, default=1)
