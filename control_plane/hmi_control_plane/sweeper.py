"""The sweeper: gives up silent runtimes, places what waits for one, erases artifacts, counts residency."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from starlette.concurrency import run_in_threadpool

from hmi_control_plane import metering
from hmi_control_plane.artifact_files import ArtifactFiles
from hmi_control_plane.catalog import placement, runs, runtimes
from hmi_control_plane.catalog.artifacts import ArtifactGarbageCollector
from hmi_control_plane.catalog.database import Database, utc_now

_UPLOADS_EVERY_SECONDS = 600.0
"""A listing of the store: too dear in an object store to be made with every sweep."""

log = logging.getLogger(__name__)


class Sweeper:
    """Runs every ``every_seconds`` beside the HTTP server; each part can be interrupted and repeated.

    The fleet and the store are swept side by side: while an object store is away each call of it lasts long,
    and runtimes fall silent as ever. ``notify`` is called after placements may have changed.
    """

    def __init__(
        self,
        database: Database,
        eraser: ArtifactGarbageCollector,
        files: ArtifactFiles,
        *,
        lost_after: timedelta,
        forgotten_after: timedelta,
        every_seconds: float,
        notify: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._eraser = eraser
        self._files = files
        self._lost_after = lost_after
        self._forgotten_after = forgotten_after
        self._every_seconds = every_seconds
        self._notify = notify
        self._clock = clock
        self._stopping = asyncio.Event()
        self._watching_since: float | None = None
        self._swept_at = float("-inf")
        self._placed_once = False
        self._uploads_swept_at = float("-inf")
        self._counted_hour: datetime | None = None

    async def run(self) -> None:
        """Sweep until ``stop``; a database or store that is away is tried again."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat("fleet", self.sweep_fleet), name="sweep the fleet")
            tasks.create_task(self._repeat("store", self.sweep_store), name="sweep the store")
            tasks.create_task(self._repeat("usage", self.sweep_usage), name="sweep the usage")

    async def _repeat(self, what: str, sweep: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                await run_in_threadpool(sweep)
            except Exception:
                # Each store's driver has errors of its own for "away", and no error may end the sweeping.
                log.exception("sweep of the %s failed and will be repeated", what)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_seconds):
                    await self._stopping.wait()

    def stop(self) -> None:
        """Ask ``run`` to return when the sweeps at work are over."""
        self._stopping.set()

    def sweep(self) -> None:
        """Do everything once."""
        self.sweep_fleet()
        self.sweep_store()
        self.sweep_usage()

    def sweep_fleet(self) -> None:
        """Give up silent runtimes, and place what waits for one."""
        lost = self._mark_lost()
        # The first time too: the process before this one may have died between a runtime and its adapters.
        if lost or not self._placed_once:
            placement.place_missing_replicas(self._database)
            self._notify()
            self._placed_once = True
        with self._database.write() as session:
            runtimes.delete_lost(session, silent_for=self._forgotten_after)
        self._swept_at = self._clock()

    def sweep_store(self) -> None:
        """Erase artifacts that nobody needs, and now and then uploads that came to nothing."""
        self._eraser.collect()
        if self._clock() - self._uploads_swept_at > _UPLOADS_EVERY_SECONDS:
            self.sweep_uploads()
            self._uploads_swept_at = self._clock()

    def sweep_usage(self) -> None:
        """Count what is resident, once in each hour; after a start perhaps again, which adds nothing."""
        moment = utc_now()
        hour = metering.start_of_hour(moment)
        if hour != self._counted_hour:
            metering.record_loaded_hour(self._database, hour, moment)
            self._counted_hour = hour

    def _mark_lost(self) -> list[str]:
        """Give up runtimes that were silent while they could be heard.

        While the database, or this process, was away nobody's heartbeat was noted; afterwards everyone gets
        the whole time again, or an outage of seconds would take all runtimes out of the routes.
        """
        moment = self._clock()
        unheard = self._every_seconds + self._lost_after.total_seconds() / 3
        if self._watching_since is None or moment - self._swept_at > unheard:
            self._watching_since = moment
        if moment - self._watching_since < self._lost_after.total_seconds():
            return []
        with self._database.write() as session:
            lost = runtimes.mark_lost(session, silent_for=self._lost_after)
        if lost:
            log.warning("no heartbeat for %s from runtimes %s", self._lost_after, ", ".join(lost))
        return lost

    def sweep_uploads(self) -> None:
        """Remove what runs that are over have uploaded and never committed."""
        staged = self._files.staged_runs()
        if staged:
            with self._database.read() as session:
                staged -= runs.open_runs(session, staged)
        for run_id in staged:
            self._files.drop_uploads(run_id)
