"""The sweeper while the artifact store is unavailable: unknown errors and slow calls."""

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from hmi_control_plane.artifact_files import ArtifactFiles
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.settings import WindowCountSettings
from hmi_control_plane.sweeper import Sweeper
from hmi_control_plane.window_counts.merging import WindowCountMerger

pytestmark = pytest.mark.anyio


class EndpointAway(Exception):
    """An error like botocore's, which is not an OSError."""


class Eraser:
    """Calls a given function instead of deleting, and counts the calls."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act
        self.calls = 0

    def collect(self) -> int:
        self.calls += 1
        self.act()
        return 0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def sweeper(database: Database, eraser: Any, root: Path, notify: Callable[[], None]) -> Sweeper:
    """Return a sweeper that marks every runtime as lost in its first sweep."""
    return Sweeper(
        database,
        eraser,
        ArtifactFiles(str(root)),
        lost_after=timedelta(0),
        forgotten_after=timedelta(hours=1),
        every_seconds=0.01,
        notify=notify,
    )


async def test_an_unknown_error_of_the_store_does_not_end_the_sweeps(
    database: Database, tmp_path: Path
) -> None:
    loop, thrice = asyncio.get_running_loop(), asyncio.Event()

    def fail() -> None:
        if eraser.calls == 3:
            loop.call_soon_threadsafe(thrice.set)
        raise EndpointAway

    eraser = Eraser(fail)
    at_work = sweeper(database, eraser, tmp_path, lambda: None)
    running = asyncio.create_task(at_work.run())
    async with asyncio.timeout(250):
        await thrice.wait()
    at_work.stop()
    await running


async def test_runtimes_are_marked_lost_while_the_store_does_not_answer(
    cluster: Any, database: Database, tmp_path: Path
) -> None:
    loop, hanging, noticed = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    answers = threading.Event()

    def hang() -> None:
        loop.call_soon_threadsafe(hanging.set)
        answers.wait()

    at_work = sweeper(database, Eraser(hang), tmp_path, lambda: loop.call_soon_threadsafe(noticed.set))
    running = asyncio.create_task(at_work.run())
    try:
        async with asyncio.timeout(250):
            await hanging.wait()
            await noticed.wait()  # the first sweep of the fleet, which always tells
            noticed.clear()
            await asyncio.to_thread(cluster.runtime, "r1")
            await noticed.wait()
        listed = await asyncio.to_thread(cluster.admin, "GET", "/runtimes")
        assert [one["lost"] for one in listed["items"]] == [True]
    finally:
        answers.set()
        at_work.stop()
        await running


def test_reports_of_windows_are_merged_from_time_to_time_and_old_counts_deleted(
    database: Database, tmp_path: Path
) -> None:
    now = [1000.0]
    calls: list[str] = []

    class Merger(WindowCountMerger):
        def merge(self) -> int:
            calls.append("merge")
            return super().merge()

        def delete_old(self) -> None:
            calls.append("delete")
            super().delete_old()

    at_work = Sweeper(
        database,
        Eraser(lambda: None),
        ArtifactFiles(str(tmp_path)),
        lost_after=timedelta(0),
        forgotten_after=timedelta(hours=1),
        every_seconds=0.01,
        notify=lambda: None,
        window_counts=Merger(database, WindowCountSettings(merge_seconds=30)),
        clock=lambda: now[0],
    )
    for _ in range(4):
        at_work.sweep_window_counts()
        now[0] += 10
    assert calls == ["merge", "delete", "merge"]
