"""Reports of windows: what is counted arrives once, whatever happens to requests and answers."""

import asyncio
import threading
from typing import Any

import pytest
from fake_control_plane import FakeControlPlane
from window_batches import batch, reported, true_counts

from hmi_api.internal.window_counts import DomainWindows, WindowCountReport
from hmi_runtime.server.window_reports import WindowReporter
from hmi_runtime.serving.window_counts import WindowCounter

pytestmark = pytest.mark.anyio

CALL = "POST /runtimes/r1/window-counts"
FIRST = [("t1", "a/a", [1, 2, 3])]
SECOND = [("t1", "a/a", [1, 2, 3, 4])]


@pytest.fixture
def plane() -> FakeControlPlane:
    return FakeControlPlane()


@pytest.fixture
def counter() -> WindowCounter:
    return WindowCounter()


@pytest.fixture
def reporter(plane: FakeControlPlane, counter: WindowCounter) -> WindowReporter:
    return WindowReporter(plane.client(), "r1", "one", counter, 3600.0)


def arrived(plane: FakeControlPlane) -> Any:
    """Return what a control plane counts that counts each sequence number once."""
    reports = {one.sequence: one for one in plane.bodies(CALL, WindowCountReport)}
    return reported([domain for one in reports.values() for domain in one.domains])


async def test_nothing_is_sent_when_nothing_was_looked_up(plane: Any, reporter: Any) -> None:
    await reporter.report()
    assert plane.calls() == []


async def test_each_report_has_what_was_counted_since_the_one_before(
    plane: Any, reporter: Any, counter: Any
) -> None:
    for texts in (FIRST, SECOND):
        counter.add(batch(texts))
        await reporter.report()
    first, second = plane.bodies(CALL, WindowCountReport)
    assert (first.sequence, second.sequence, first.incarnation) == (1, 2, "one")
    assert reported(first.domains) == true_counts(FIRST)
    assert reported(second.domains) == true_counts(SECOND)


@pytest.mark.parametrize("fault", ["fail", "drop", "lose_answer"])
async def test_a_report_that_was_not_acknowledged_is_sent_again_unchanged(
    plane: Any, reporter: Any, counter: Any, fault: str
) -> None:
    options = {"status": 503} if fault == "fail" else {}
    getattr(plane, fault)(**options, request=CALL)
    counter.add(batch(FIRST))
    await reporter.report()
    counter.add(batch(SECOND))
    await reporter.report()
    await reporter.report()
    bodies = [one.body for one in plane.requests]
    assert bodies[0] == bodies[1] != bodies[2]
    assert arrived(plane) == true_counts([*FIRST, *SECOND])


@pytest.mark.parametrize(("status", "reason"), [(404, "NotFound"), (422, "InvalidField")])
async def test_a_report_that_is_refused_is_not_sent_again(
    plane: Any, reporter: Any, counter: Any, status: int, reason: str
) -> None:
    """404: the control plane is older than the call."""
    plane.fail(status, reason, request=CALL)
    counter.add(batch(FIRST))
    await reporter.report()
    counter.add(batch(SECOND))
    await reporter.report()
    assert [one.sequence for one in plane.bodies(CALL, WindowCountReport)] == [1, 2]


async def test_the_last_report_is_tried_once(plane: Any, reporter: Any, counter: Any) -> None:
    plane.drop(request=CALL)
    counter.add(batch(FIRST))
    await reporter.report_last()
    assert plane.calls() == [CALL]


async def test_a_report_that_is_being_made_at_shutdown_is_the_last(plane: Any) -> None:
    taking, goes_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    class SlowCounter(WindowCounter):
        def take(self, *arguments: int) -> list[DomainWindows]:
            taken = super().take(*arguments)
            loop.call_soon_threadsafe(taking.set)
            assert goes_on.wait(60.0)
            return taken

    counter = SlowCounter()
    reporter = WindowReporter(plane.client(), "r1", "one", counter, 3600.0)
    counter.add(batch(FIRST))
    reporting = asyncio.create_task(reporter.report())
    await taking.wait()
    reporting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reporting
    goes_on.set()
    await reporter.report_last()
    assert arrived(plane) == true_counts(FIRST)
