"""How often resources are reconciled without an event: the more there are, the less often."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from hmi_operator.controller import Controller, Pace
from hmi_operator.ports import ResourceRef
from hmi_operator.reconciler import ReconcileResult

pytestmark = pytest.mark.anyio

PACE = Pace(resync_seconds=15, resyncs_per_second=5, per_second=20)


class Reconciler:
    """Counts reconciliations; each resource wants to be requeued after some seconds, or never."""

    def __init__(self, wanted: float | None, count: int) -> None:
        self.wanted = wanted
        self.left = count
        self.all_looked_at = asyncio.Event()

    async def reconcile(self, ref: ResourceRef) -> ReconcileResult:
        self.left -= 1
        if self.left == 0:
            self.all_looked_at.set()
        return ReconcileResult(self.wanted)


class Store:
    """So many resources."""

    def __init__(self, count: int) -> None:
        self._count = count

    def get(self, ref: ResourceRef) -> Any:
        return ref

    def count(self) -> int:
        return self._count


@pytest.fixture
async def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The delays of timers, in order."""
    loop, delays = asyncio.get_running_loop(), list[float]()
    later: Callable[..., asyncio.TimerHandle] = loop.call_later

    def call_later(delay: float, *arguments: Any, **options: Any) -> asyncio.TimerHandle:
        delays.append(delay)
        return later(delay, *arguments, **options)

    monkeypatch.setattr(loop, "call_later", call_later)
    return delays


@pytest.mark.parametrize(
    ("wanted", "looked_at", "there_are", "pause"),
    [
        (None, 1, 10, 15),
        (None, 1, 5000, 1000),
        (1.0, 1, 5000, 1),
        (1.0, 100, 5000, 5),
        (60.0, 1, 10, 15),
    ],
    ids=["few", "many", "one that waits", "many that wait", "no longer than a resync"],
)
async def test_the_pause_grows_with_the_number_of_resources(
    wanted: float | None, looked_at: int, there_are: int, pause: float, pauses: list[float]
) -> None:
    engine, stop = Reconciler(wanted, looked_at), asyncio.Event()
    reconciler = Controller(engine.reconcile, Store(there_are), workers=1, pace=PACE)  # type: ignore[arg-type]
    for number in range(looked_at):
        reconciler.enqueue(ResourceRef("TaskAdapter", "shop", f"task-{number}"))
    running = asyncio.create_task(reconciler.run(stop))
    await engine.all_looked_at.wait()
    stop.set()
    await running
    assert pauses[-1] == pytest.approx(pause)
