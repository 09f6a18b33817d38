"""The work queue: the order of resources, each queued once."""

import asyncio

import pytest

from hmi_operator.ports import ResourceRef
from hmi_operator.workqueue import TIMER_SHARE, WorkQueue

pytestmark = pytest.mark.anyio


def ref(name: str) -> ResourceRef:
    return ResourceRef("TaskAdapter", "shop", name)


async def taken(queue: WorkQueue) -> str:
    found = await queue.get()
    assert found is not None
    return found.name


async def come_by_timer(queue: WorkQueue, *names: str) -> None:
    """Queue resources whose timers fired."""
    before = len(queue)
    for name in names:
        queue.add(ref(name))
    for _ in names:
        found = await queue.get()
        assert found is not None
        queue.done(found, 1e-9)
    while len(queue) < before + len(names):  # noqa: ASYNC110 -- a timer signals nothing when it fires
        await asyncio.sleep(0)


async def test_first_come_first_served_and_each_once() -> None:
    queue = WorkQueue()
    for name in ("a", "b", "a", "c"):
        queue.add(ref(name))
    assert len(queue) == 3
    assert [await taken(queue) for _ in range(3)] == ["a", "b", "c"]
    assert len(queue) == 0


async def test_a_resource_added_while_it_is_processed_is_queued_again() -> None:
    queue = WorkQueue()
    queue.add(ref("a"))
    assert await taken(queue) == "a"
    queue.add(ref("a"))
    assert len(queue) == 0
    queue.done(ref("a"), None)
    assert await taken(queue) == "a"
    queue.done(ref("a"), None)
    assert len(queue) == 0


async def test_events_precede_timers() -> None:
    queue = WorkQueue()
    await come_by_timer(queue, "old-1", "old-2")
    queue.add(ref("new"))
    assert [await taken(queue) for _ in range(3)] == ["new", "old-1", "old-2"]


async def test_an_event_moves_up_a_resource_whose_timer_fired() -> None:
    queue = WorkQueue()
    await come_by_timer(queue, "old-1", "old-2")
    queue.add(ref("old-2"))
    assert len(queue) == 2
    assert [await taken(queue) for _ in range(2)] == ["old-2", "old-1"]


async def test_timers_get_a_share_of_the_queue_despite_many_events() -> None:
    queue = WorkQueue()
    await come_by_timer(queue, "old")
    for number in range(2 * TIMER_SHARE):
        queue.add(ref(f"new-{number}"))
    assert "old" in [await taken(queue) for _ in range(TIMER_SHARE)]


async def test_an_immediate_requeue_counts_as_an_event() -> None:
    queue = WorkQueue()
    await come_by_timer(queue, "old")
    queue.add(ref("a"))
    assert await taken(queue) == "a"
    queue.done(ref("a"), 0.0)
    assert [await taken(queue) for _ in range(2)] == ["a", "old"]


async def test_shutting_the_queue_down_releases_every_waiter() -> None:
    queue = WorkQueue()
    waiters = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.shut_down()
    queue.add(ref("a"))
    assert await asyncio.gather(*waiters) == [None, None, None]
    assert await queue.get() is None
