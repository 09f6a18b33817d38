"""The spool: usage events on the local disk, with one sync for all requests that wait."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hmi_api.errors import NotReady
from hmi_control_plane.metering.events import UsageEvent, to_cloud_event
from hmi_control_plane.metering.segments import SegmentFolder, encode_line


@dataclass(frozen=True)
class _Waiting:
    lines: list[bytes]
    done: asyncio.Future[None]


class Spool:
    """Appends events durably without blocking the event loop.

    While one write is being synced, further appends are collected for the next write (group commit).
    ``folder`` belongs to one process. Use it from one event loop, after ``open``.
    """

    def __init__(
        self, folder: Path, *, segment_bytes: int = 16 * 2**20, limit_bytes: int | None = None
    ) -> None:
        self.segments = SegmentFolder(folder, segment_bytes=segment_bytes, limit_bytes=limit_bytes)
        self._waiting: list[_Waiting] = []
        self._committer: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Lock the folder. Raises SpoolInUseError if another running process has locked it."""
        self.segments.open()

    def require_room(self) -> None:
        """Raise NotReady (SpoolFull) while events cannot be recorded."""
        if self.segments.is_full:
            raise NotReady(
                "SpoolFull",
                "Usage cannot be recorded: the spool is full, or its disk fails. Requests are accepted again "
                "when the database has recorded the waiting events.",
            )

    async def append(self, events: Sequence[UsageEvent]) -> None:
        """Return when the events are on the disk. Raises OSError when they could not be written."""
        if not events:
            return
        lines = [encode_line(to_cloud_event(event)) for event in events]
        waiting = _Waiting(lines, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._committer is None:
            self._committer = asyncio.create_task(self._commit_all(), name="usage-spool-commit")
        await waiting.done

    async def close(self) -> None:
        """Wait for the current write, then unlock the folder."""
        if self._committer is not None:
            await self._committer
        await asyncio.to_thread(self.segments.close)

    async def _commit_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                await self._commit(batch)
        finally:
            self._committer = None

    async def _commit(self, batch: list[_Waiting]) -> None:
        error: OSError | None = None
        try:
            await asyncio.to_thread(self.segments.append, [line for item in batch for line in item.lines])
        except OSError as failure:
            error = failure
        for item in batch:
            if item.done.done():  # the request was cancelled; the answer was computed, so it is still metered
                continue
            if error is None:
                item.done.set_result(None)
            else:
                item.done.set_exception(error)
