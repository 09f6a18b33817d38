"""Adapters in host memory and in slots: shared loads, failures apart, and budgets under many threads."""

import gc
import threading
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random

import pytest

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.errors import Damaged, HmiError, NotReady
from hmi_api.names import digest_bytes
from hmi_runtime.cache.adapter_cache import AdapterCache, AdapterId
from hmi_runtime.cache.tiers import Tier

LIMIT = 60.0


@dataclass(frozen=True)
class Block:
    """Weights that are only a size."""

    nbytes: int
    name: str


@dataclass
class Pool:
    """Device memory that records what is in which slot."""

    slots: dict[int, Block] = field(default_factory=dict)

    def write(self, slot: int, weights: Block) -> None:
        if weights.name.startswith("too-large"):
            raise Damaged("AdapterTooLarge", "It does not fit a slot.")
        self.slots[slot] = weights


@dataclass
class Counts:
    """Records the events of a cache."""

    seen: Counter[str] = field(default_factory=Counter)

    def loaded(self, tier: Tier, seconds: float, *, failed: bool) -> None:
        self.seen[f"{'failed' if failed else 'loaded'} {tier}"] += 1

    def hit(self, tier: Tier) -> None:
        self.seen[f"hit {tier}"] += 1

    def evicted(self, source: Tier, target: Tier) -> None:
        self.seen[f"{source} to {target}"] += 1


def ref(name: str, size: int = 10) -> ArtifactRef:
    digest = digest_bytes(name.encode())
    return ArtifactRef(kind=ArtifactKind.ADAPTER, uri=name, digest=digest, bytes=size)


def adapter(name: str) -> AdapterId:
    return AdapterId(f"tenant/{name}", 1)


class Holder:
    """Waits until a cache calls back."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self.error: HmiError | None = None

    def __call__(self, error: HmiError | None) -> None:
        self.error = error
        self._done.set()

    @property
    def answered(self) -> bool:
        return self._done.is_set()

    def wait(self) -> HmiError | None:
        assert self._done.wait(LIMIT)
        return self.error


@dataclass
class Fixture:
    cache: AdapterCache[Block]
    counts: Counts
    loads: Counter[str]
    gate: threading.Event
    broken: set[str]
    now: list[float]

    def register(self, *names: str, pinned: bool = False) -> None:
        for name in names:
            self.cache.register(adapter(name), ref(name), pinned=pinned)

    def acquire(self, name: str) -> Holder:
        holder = Holder()
        self.cache.acquire(adapter(name), holder)
        return holder

    def use_once(self, name: str) -> HmiError | None:
        error = self.acquire(name).wait()
        if error is None:
            self.cache.release(adapter(name))
        return error


@pytest.fixture
def made():  # type: ignore[no-untyped-def]
    counts, loads, gate, broken, now = Counts(), Counter[str](), threading.Event(), set[str](), [0.0]
    gate.set()

    def load(wanted: AdapterId, artifact: ArtifactRef) -> Block:
        loads[artifact.uri] += 1
        assert gate.wait(LIMIT)
        if artifact.uri in broken:
            raise Damaged("DigestMismatch", "The bytes were altered.")
        return Block(10, artifact.uri)

    with ThreadPoolExecutor(4) as loaders:
        cache = AdapterCache(
            load, loaders, host_limit=50, room_wait=0.05, events=counts, clock=lambda: now[0]
        )
        yield Fixture(cache, counts, loads, gate, broken, now)
        gate.set()


def test_registering_reads_nothing(made: Fixture) -> None:
    for number in range(10_000):
        made.register(f"a{number}")
    assert made.loads.total() == 0
    assert made.use_once("a9999") is None
    assert made.loads.total() == 1


def test_many_callers_share_one_load(made: Fixture) -> None:
    made.register("a")
    made.gate.clear()
    holders = [made.acquire("a") for _ in range(20)]
    made.gate.set()
    assert [holder.wait() for holder in holders] == [None] * 20
    assert made.loads["a"] == 1
    for _ in holders:
        made.cache.release(adapter("a"))


def test_a_slow_load_does_not_delay_others(made: Fixture) -> None:
    made.register("slow", "there")
    assert made.use_once("there") is None
    made.gate.clear()
    slow = made.acquire("slow")
    assert made.use_once("there") is None
    assert not slow.answered
    made.gate.set()
    assert slow.wait() is None
    made.cache.release(adapter("slow"))


def test_the_least_recently_used_is_evicted_first_but_not_while_in_use(made: Fixture) -> None:
    names = [f"a{number}" for number in range(5)]
    made.register(*names, "new")
    for name in names:
        made.use_once(name)
    assert made.acquire("a0").wait() is None  # in use now, and the most recent
    made.use_once("new")
    assert [loaded.key for loaded in made.cache.loaded()] == [
        f"tenant/{name}" for name in ("a2", "a3", "a4", "a0", "new")
    ]
    assert made.counts.seen["host to disk"] == 1
    made.cache.release(adapter("a0"))


def test_a_load_waits_for_room_while_all_is_in_use_and_then_fails(made: Fixture) -> None:
    names = [f"a{number}" for number in range(5)]
    made.register(*names, "more")
    for name in names:
        assert made.acquire(name).wait() is None
    error = made.use_once("more")
    assert isinstance(error, NotReady)
    assert error.reason == "HostBudgetFull"
    made.cache.release(adapter("a3"))
    made.now[0] += 10  # the failure expires
    assert made.use_once("more") is None
    for name in ("a0", "a1", "a2", "a4"):
        made.cache.release(adapter(name))


@pytest.mark.parametrize("reason", ["HostBudgetFull", "AdapterUnreadable"])
def test_a_load_that_failed_keeps_no_tensors_in_memory(reason: str) -> None:
    read: list[weakref.ref[Block]] = []

    def load(_: AdapterId, artifact: ArtifactRef) -> Block:
        block = Block(60, artifact.uri)
        read.append(weakref.ref(block))
        try:
            assert reason == "HostBudgetFull"
        except AssertionError as error:
            raise Damaged(reason, "A tensor is missing.") from error
        return block

    with ThreadPoolExecutor(1) as loaders:
        cache = AdapterCache(load, loaders, host_limit=50)
        cache.register(adapter("a"), ref("a"))
        holder = Holder()
        cache.acquire(adapter("a"), holder)
        error = holder.wait()
    assert error is not None
    assert error.reason == reason
    gc.collect()
    assert [block() for block in read] == [None]


def test_pinned_adapters_are_not_evicted_and_use_at_most_half(made: Fixture) -> None:
    made.register("p0", "p1", "p2", pinned=True)  # the third exceeds half of the budget
    made.register(*(f"a{number}" for number in range(9)))
    for name in ("p0", "p1", "p2", *(f"a{number}" for number in range(9))):
        assert made.use_once(name) is None
    kept = {loaded.key for loaded in made.cache.loaded()}
    assert {"tenant/p0", "tenant/p1"} <= kept
    assert "tenant/p2" not in kept


def test_a_broken_adapter_fails_alone_and_is_not_read_again_immediately(made: Fixture) -> None:
    made.register("good", "bad")
    made.broken.add("bad")
    error = made.use_once("bad")
    assert error is not None
    assert error.reason == "DigestMismatch"
    assert made.use_once("bad") is error
    assert made.loads["bad"] == 1
    assert made.use_once("good") is None
    made.broken.clear()
    made.now[0] += 10
    assert made.use_once("bad") is None


def test_an_unknown_adapter_gives_an_error(made: Fixture) -> None:
    error = made.use_once("never-registered")
    assert error is not None
    assert error.reason == "NotRegistered"


def test_an_unregistered_adapter_is_removed_when_its_last_user_releases_it(made: Fixture) -> None:
    made.register("a")
    assert made.acquire("a").wait() is None
    made.cache.unregister(adapter("a"))
    assert made.cache.weights(adapter("a")).name == "a"
    made.cache.release(adapter("a"))
    assert made.cache.host_used == 0


def test_slots_are_written_once_and_freed_with_host_memory(made: Fixture) -> None:
    pool = Pool()
    tier = made.cache.add_slots(4, pool)
    made.register(*(f"a{number}" for number in range(6)))
    for name in ("a0", "a1"):
        assert made.acquire(name).wait() is None
    for _ in range(2):
        with tier.acquired([adapter("a0"), adapter("a1")]) as acquired:
            assert {pool.slots[slot].name for slot in acquired.slots.values()} == {"a0", "a1"}
    assert made.counts.seen["loaded device"] == 2
    for name in ("a0", "a1"):
        made.cache.release(adapter(name))
    for number in range(2, 6):
        made.use_once(f"a{number}")  # these evict a0 from host memory
    assert tier.loaded() == [adapter("a1")]


def test_an_adapter_that_cannot_be_written_to_a_slot_fails_alone(made: Fixture) -> None:
    tier = made.cache.add_slots(4, Pool())
    made.register("good", "too-large")
    for name in ("good", "too-large"):
        assert made.acquire(name).wait() is None
    with tier.acquired([adapter("too-large"), adapter("good")]) as acquired:
        assert list(acquired.slots) == [adapter("good")]
        assert acquired.failed[adapter("too-large")].reason == "AdapterTooLarge"
    for name in ("good", "too-large"):
        made.cache.release(adapter(name))


def test_a_slot_in_use_by_a_running_batch_is_never_assigned_again(made: Fixture) -> None:
    pool = Pool()
    tier = made.cache.add_slots(4, pool)
    made.register(*(f"a{number}" for number in range(5)))
    for number in range(5):
        assert made.acquire(f"a{number}").wait() is None
    first = tier.acquire([adapter("a0"), adapter("a1")])
    second = tier.acquire([adapter("a2"), adapter("a3")])
    waiting: list[int] = []
    thread = threading.Thread(target=lambda: waiting.extend(tier.acquire([adapter("a4")]).slots.values()))
    thread.start()
    thread.join(0.02)
    assert not waiting
    tier.release(first)
    thread.join(LIMIT)
    assert waiting[0] in first.slots.values()
    assert {pool.slots[slot].name for slot in second.slots.values()} == {"a2", "a3"}


def test_batches_on_many_threads_share_slots_that_suffice_for_one_of_them(made: Fixture) -> None:
    pool = Pool()
    tier = made.cache.add_slots(4, pool)
    names = [f"a{number}" for number in range(5)]
    made.register(*names)
    for name in names:
        assert made.acquire(name).wait() is None

    def work(seed: int) -> None:
        random = Random(seed)  # noqa: S311 (which adapter is no secret)
        for _ in range(200):
            wanted = random.sample(names, 2)
            with tier.acquired([adapter(name) for name in wanted]) as acquired:
                for name, slot in zip(wanted, acquired.slots.values(), strict=True):
                    assert pool.slots[slot].name == name

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work, seed) for seed in range(4)]:
            done.result(LIMIT)


def test_a_batch_waits_until_another_one_has_written_an_adapter_to_its_slot(made: Fixture) -> None:
    writing, finish = threading.Event(), threading.Event()

    class SlowPool(Pool):
        def write(self, slot: int, weights: Block) -> None:
            writing.set()
            assert finish.wait(LIMIT)
            super().write(slot, weights)

    pool = SlowPool()
    tier = made.cache.add_slots(4, pool)
    made.register("a0")
    assert made.acquire("a0").wait() is None
    seen: list[bool] = []

    def use() -> None:
        with tier.acquired([adapter("a0")]) as acquired:
            seen.append(acquired.slots[adapter("a0")] in pool.slots)

    threads = [threading.Thread(target=use) for _ in range(2)]
    threads[0].start()
    assert writing.wait(LIMIT)
    threads[1].start()
    threads[1].join(0.02)
    finish.set()
    for thread in threads:
        thread.join(LIMIT)
    assert seen == [True, True]


def test_many_threads_do_not_exceed_the_budget(made: Fixture) -> None:
    names = [f"a{number}" for number in range(30)]
    made.register(*names)
    most = 0

    def work(seed: int) -> None:
        nonlocal most
        random = Random(seed)  # noqa: S311 (which adapter is no secret)
        for _ in range(100):
            name = random.choice(names)
            if made.acquire(name).wait() is None:
                assert made.cache.weights(adapter(name)).name == name
                most = max(most, made.cache.host_used)
                made.cache.release(adapter(name))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert 0 < most <= 50
