"""The flusher: moves usage events from the spool to the catalog, in batches, until they are recorded."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic

from prometheus_client import CollectorRegistry, Counter, Gauge
from sqlalchemy.exc import SQLAlchemyError

from hmi_api.internal.retry import RetryPolicy
from hmi_control_plane.catalog.database import Database, utc_now
from hmi_control_plane.metering.events import UsageEvent
from hmi_control_plane.metering.records import record_events
from hmi_control_plane.metering.segments import SegmentFolder, read_segment


class MeteringMetrics:
    """Counters and gauges of one spool and its flusher, on the given registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        gauge, counter = partial(Gauge, registry=registry), partial(Counter, registry=registry)
        self.spool_lag_seconds = gauge(
            "hmi_usage_spool_lag_seconds",
            "How long usage events have been waiting for the catalog; 0 while the last flush succeeded.",
        )
        self.spool_bytes = gauge("hmi_usage_spool_bytes", "Bytes of usage events on the local disk.")
        self.spool_full = gauge(
            "hmi_usage_spool_full",
            "1 while usage events cannot be recorded and requests are therefore refused, else 0.",
        )
        self.events_flushed = counter(
            "hmi_usage_events_flushed_total", "Usage events delivered to the catalog."
        )
        self.flush_failures = counter(
            "hmi_usage_flush_failures_total", "Flushes that the catalog did not accept."
        )
        self.damaged_lines = counter(
            "hmi_usage_damaged_lines_total", "Spooled lines that could not be read back."
        )


log = logging.getLogger(__name__)
MAX_BACKOFF_SECONDS = 30.0


class Flusher:
    """Moves sealed segments to the catalog, and deletes a segment only after the commit.

    After a crash between the two, the segment is delivered again; its events have the same identities and so
    count once. While the database is unavailable, events wait in the spool. ``interval`` is in seconds. A
    spool that was full is usable again as soon as a segment has been deleted.
    """

    def __init__(
        self,
        segments: SegmentFolder,
        database: Database,
        metrics: MeteringMetrics,
        *,
        interval: float = 1.0,
    ) -> None:
        self._segments = segments
        self._database = database
        self._metrics = metrics
        self._interval = interval
        self._backoff = RetryPolicy(first_wait=2 * interval, longest_wait=MAX_BACKOFF_SECONDS)
        self._stopping = asyncio.Event()
        self._behind_since: float | None = None
        metrics.spool_full.set_function(lambda: float(segments.is_full))

    async def run(self) -> None:
        """Flush every ``interval`` until ``stop``, then once more; back off while flushes fail."""
        failures = 0
        while not self._stopping.is_set():
            failures = 0 if await self._try_flush() else failures + 1
            if self._segments.is_full:  # no requests are answered until events are flushed
                failures = 0
            await self._pause(self._backoff.wait(failures) if failures else self._interval)
        await self._try_flush()

    def stop(self) -> None:
        """Make ``run`` flush a last time and return."""
        self._stopping.set()

    def flush(self) -> int:
        """Move all events that are spooled now; return how many were delivered.

        Blocking. Raises SQLAlchemyError if the database does not accept them; then the segments stay.
        """
        delivered = 0
        for segment in self._segments.seal():
            contents = read_segment(segment)
            self._deliver(contents.events)
            delivered += len(contents.events)
            self._dispose(segment, torn=contents.torn, damaged=contents.damaged)
            self._segments.make_room()
        return delivered

    async def _try_flush(self) -> bool:
        try:
            delivered = await asyncio.to_thread(self.flush)
        except (SQLAlchemyError, OSError) as error:
            self._metrics.flush_failures.inc()
            self._behind_since = self._behind_since or monotonic()
            log.warning("usage events wait in the spool: %s", error)
            succeeded = False
        else:
            self._metrics.events_flushed.inc(delivered)
            self._behind_since = None
            succeeded = True
        self._metrics.spool_lag_seconds.set(monotonic() - self._behind_since if self._behind_since else 0.0)
        await asyncio.to_thread(self._segments.make_room)  # the disk may have been made larger
        self._metrics.spool_bytes.set(await asyncio.to_thread(self._segments.unflushed_bytes))
        return succeeded

    def _deliver(self, events: Sequence[UsageEvent]) -> None:
        if events:
            with self._database.write() as session:
                record_events(session, events, utc_now())

    def _dispose(self, segment: Path, *, torn: int, damaged: int) -> None:
        if torn:
            log.warning(
                "%s ends in %d bytes of an incomplete write that was never acknowledged", segment, torn
            )
        if damaged:
            self._metrics.damaged_lines.inc(damaged)
            kept = self._segments.set_aside(segment)
            log.error("%d lines of %s are damaged and were not counted; see %s", damaged, segment, kept)
        else:
            self._segments.remove(segment)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), timeout=seconds)
