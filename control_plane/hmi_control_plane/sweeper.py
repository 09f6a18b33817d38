"""The sweeper: periodic cleanup of runtimes and artifacts, and the hourly usage of loaded adapters."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from datetime import date, datetime, timedelta

from starlette.concurrency import run_in_threadpool

from hmi_control_plane.artifact_files import ArtifactFiles
from hmi_control_plane.catalog import placement, runs, runtimes
from hmi_control_plane.catalog.artifacts import ArtifactGarbageCollector
from hmi_control_plane.catalog.database import Database, utc_now
from hmi_control_plane.metering import records
from hmi_control_plane.window_counts.merging import WindowCountMerger

_UPLOADS_EVERY_SECONDS = 600.0
"""Listing the store is too expensive for every sweep, above all in an object store."""

log = logging.getLogger(__name__)


class Sweeper:
    """Runs every ``every_seconds`` beside the HTTP server; each part can be interrupted and repeated.

    Runtimes and the store are swept concurrently, because calls of an unavailable object store take long.
    ``notify`` is called after placements may have changed.
    """

    def __init__(
        self,
        database: Database,
        collector: ArtifactGarbageCollector,
        files: ArtifactFiles,
        *,
        lost_after: timedelta,
        forgotten_after: timedelta,
        every_seconds: float,
        notify: Callable[[], None],
        window_counts: WindowCountMerger | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._collector = collector
        self._files = files
        self._lost_after = lost_after
        self._forgotten_after = forgotten_after
        self._every_seconds = every_seconds
        self._notify = notify
        self._window_counts = window_counts
        self._clock = clock
        self._stopping = asyncio.Event()
        self._watching_since: float | None = None
        self._swept_at = float("-inf")
        self._placed_once = False
        self._uploads_swept_at = float("-inf")
        self._recorded_hour: datetime | None = None
        self._windows_merged_at = float("-inf")
        self._windows_deleted_on: date | None = None

    async def run(self) -> None:
        """Sweep until ``stop``; a failed sweep is repeated."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat("fleet", self.sweep_fleet), name="sweep the fleet")
            tasks.create_task(self._repeat("store", self.sweep_store), name="sweep the store")
            tasks.create_task(self._repeat("usage", self.sweep_usage), name="sweep the usage")
            tasks.create_task(
                self._repeat("window counts", self.sweep_window_counts), name="sweep the window counts"
            )

    async def _repeat(self, what: str, sweep: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                await run_in_threadpool(sweep)
            except Exception:
                # Each store's driver raises its own errors, and none may end the sweeps.
                log.exception("sweep of the %s failed; it will be repeated", what)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_seconds):
                    await self._stopping.wait()

    def stop(self) -> None:
        """Make ``run`` return after the current sweeps."""
        self._stopping.set()

    def sweep_fleet(self) -> None:
        """Mark silent runtimes as lost, and place adapters that lack replicas."""
        lost = self._mark_lost()
        # At the first sweep too: an earlier process may have died before it placed adapters.
        if lost or not self._placed_once:
            placement.place_missing_replicas(self._database)
            self._notify()
            self._placed_once = True
        with self._database.write() as session:
            runtimes.delete_lost(session, silent_for=self._forgotten_after)
        self._swept_at = self._clock()

    def sweep_store(self) -> None:
        """Delete artifacts that no version needs, and every ten minutes uploads of finished runs."""
        self._collector.collect()
        if self._clock() - self._uploads_swept_at > _UPLOADS_EVERY_SECONDS:
            self.sweep_uploads()
            self._uploads_swept_at = self._clock()

    def sweep_usage(self) -> None:
        """Record the loaded adapters once in each hour; recording an hour again adds nothing."""
        now = utc_now()
        hour = records.start_of_hour(now)
        if hour != self._recorded_hour:
            records.record_loaded_hour(self._database, hour, now)
            self._recorded_hour = hour

    def sweep_window_counts(self) -> None:
        """Merge runtimes' reports of windows from time to time, and once a day delete old counts."""
        if self._window_counts is None:
            return
        if self._clock() - self._windows_merged_at >= self._window_counts.settings.merge_seconds:
            self._window_counts.merge()
            self._windows_merged_at = self._clock()
        today = utc_now().date()
        if today != self._windows_deleted_on:
            self._window_counts.delete_old()
            self._windows_deleted_on = today

    def _mark_lost(self) -> list[str]:
        """Mark runtimes as lost that sent no heartbeat while heartbeats could be recorded.

        While the database or this process was down, no heartbeat was recorded. Afterwards all runtimes get
        the full time again; otherwise an outage of seconds would remove all runtimes from the routes.
        """
        now = self._clock()
        longest_gap = self._every_seconds + self._lost_after.total_seconds() / 3
        if self._watching_since is None or now - self._swept_at > longest_gap:
            self._watching_since = now
        if now - self._watching_since < self._lost_after.total_seconds():
            return []
        with self._database.write() as session:
            lost = runtimes.mark_lost(session, silent_for=self._lost_after)
        if lost:
            log.warning("no heartbeat for %s from runtimes %s", self._lost_after, ", ".join(lost))
        return lost

    def sweep_uploads(self) -> None:
        """Delete what finished runs have uploaded and never committed."""
        staged = self._files.staged_runs()
        if staged:
            with self._database.read() as session:
                staged -= runs.open_runs(session, staged)
        for run_id in staged:
            self._files.drop_uploads(run_id)
