"""Segment files: checksummed lines, appended and synced, sealed, read back and deleted.

A segment is named by a growing number: ``000000000001.open`` while it is appended to, then
``000000000001.events``. Each line is ``{json}\t{crc32}\n``; JSON never contains a raw tab, so the last tab
separates the two. Zeros after the last line are pre-allocated space that was not used. Everything here is
synchronous and safe to call from several threads.
"""

import fcntl
import itertools
import logging
import os
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hmi_api.durable_files import fsync_path
from hmi_control_plane.metering.events import UsageEvent, from_cloud_event

log = logging.getLogger(__name__)

SUFFIX = ".events"
OPEN_SUFFIX = ".open"
DAMAGED_SUFFIX = ".damaged"
LOCK_NAME = "lock"

_ROOM_BYTES = 256 * 1024


class SpoolInUseError(Exception):
    """Another process uses this folder; each process needs its own."""


class SpoolFullError(OSError):
    """The folder has reached its limit of bytes."""


@dataclass(frozen=True)
class SegmentContents:
    """The contents of a sealed segment.

    ``torn`` counts bytes after the last complete line: an incomplete write, which was never acknowledged.
    ``damaged`` counts unreadable lines before that, which may have been acknowledged.
    """

    events: list[UsageEvent]
    torn: int
    damaged: int


def encode_line(json_line: str) -> bytes:
    """Return the stored form of one event's JSON."""
    body = json_line.encode()
    return b"%s\t%08x\n" % (body, zlib.crc32(body))


def read_segment(path: Path) -> SegmentContents:
    """Return a segment's readable events, and how much of it is unreadable."""
    *lines, tail = path.read_bytes().rstrip(b"\0").split(b"\n")
    decoded = [_decode_line(line) for line in lines]
    torn = len(tail)
    while decoded and decoded[-1] is None:  # blocks of an unsynced write reach the disk in any order
        decoded.pop()
        torn += len(lines[len(decoded)]) + 1
    events = [event for event in decoded if event is not None]
    return SegmentContents(events, torn=torn, damaged=len(decoded) - len(events))


def _decode_line(line: bytes) -> UsageEvent | None:
    body, tab, checksum = line.rpartition(b"\t")
    if not tab or checksum != b"%08x" % zlib.crc32(body):
        return None
    try:
        return from_cloud_event(body.decode())
    except (ValueError, KeyError, TypeError):
        log.exception("a usage event with a correct checksum cannot be parsed: %r", body)
        return None


@dataclass(frozen=True, slots=True)
class _Open:
    """The open segment."""

    path: Path
    descriptor: int


class SegmentFolder:
    """The folder of segments of one process: one open for appending, the others sealed.

    Segments of an earlier process are sealed. Call ``open`` first. Sealing also creates the next segment,
    with pre-allocated space: an append then syncs only its own bytes, while a growing file would also wait
    for the file system's journal and so for other writes.

    The folder takes at most ``limit_bytes`` of events; None means as many as fit on the disk. After an append
    failed, ``is_full`` is true until another one succeeds or ``make_room`` finds that it would.
    """

    def __init__(
        self, folder: Path, *, segment_bytes: int = 16 * 2**20, limit_bytes: int | None = None
    ) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._limit_bytes = limit_bytes
        self._sealed_bytes = 0
        self._full = False
        self._lock = threading.Lock()
        self._folder_lock: BinaryIO | None = None
        self._open: _Open | None = None
        self._end = 0  # bytes of it that are synced
        self._numbers = itertools.count(1)

    def open(self) -> None:
        """Create the folder and lock it. Raises SpoolInUseError if a running process has locked it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder_lock = _lock_folder(self._folder)
        for left in self._folder.glob(f"*{OPEN_SUFFIX}"):
            left.rename(left.with_suffix(SUFFIX))
        self._sealed_bytes = sum(map(_size, self._folder.glob(f"*{SUFFIX}")))
        numbers = [int(path.stem) for path in self._folder.iterdir() if path.stem.isdigit()]
        self._numbers = itertools.count(max(numbers, default=0) + 1)
        self._open = self._try_make()

    def append(self, lines: Sequence[bytes]) -> None:
        """Write ``lines`` and return when they are on the disk.

        Raises OSError if that is uncertain; then none of them will be read back.
        """
        data = b"".join(lines)
        with self._lock:
            try:
                self._append(data)
            except OSError:
                self._full = True
                raise
            self._full = False

    def _append(self, data: bytes) -> None:
        if not self._has_room_for(len(data)):
            raise SpoolFullError(f"{self._folder} has reached its limit of {self._limit_bytes} bytes")
        if self._open is None:
            self._open = self._make()
        descriptor = self._open.descriptor
        try:
            _write_all(descriptor, data)
            os.fdatasync(descriptor)
        except OSError:
            self._truncate(descriptor)
            raise
        self._end += len(data)
        if self._end >= self._segment_bytes:
            self._replace(None)

    @property
    def is_full(self) -> bool:
        """Whether the last append failed and the next one may fail, too."""
        return self._full

    def make_room(self) -> None:
        """If the folder is full, check whether an append would succeed now. Cheap if it is not full."""
        if not self._full:
            return
        with self._lock:
            if not self._has_room_for(self._room):
                return
            try:
                self._open = self._open or self._make(needs_room=True)
            except OSError:
                return
            self._full = False

    def seal(self) -> list[Path]:
        """Seal the open segment unless it is empty; return all sealed segments, oldest first."""
        if self._end:
            fresh = self._try_make()  # while others append
            with self._lock:
                self._replace(fresh)
        return sorted(self._folder.glob(f"*{SUFFIX}"))

    def remove(self, segment: Path) -> None:
        """Delete a sealed segment; call it only after its events were committed."""
        size = _size(segment)
        segment.unlink(missing_ok=True)
        self._subtract_sealed(size)

    def set_aside(self, segment: Path) -> Path:
        """Rename a damaged segment, so that it is kept for a person to inspect and not read again."""
        self._subtract_sealed(_size(segment))
        return segment.rename(segment.with_suffix(DAMAGED_SUFFIX))

    def unflushed_bytes(self) -> int:
        """Return the bytes of all events that are not flushed yet."""
        return self._end + sum(map(_size, self._folder.glob(f"*{SUFFIX}")))

    def close(self) -> None:
        """Seal the open segment and unlock the folder."""
        with self._lock:
            self._replace(None)
            if self._folder_lock is not None:
                self._folder_lock.close()
                self._folder_lock = None

    @property
    def _room(self) -> int:
        """Bytes to pre-allocate for a new segment."""
        return min(_ROOM_BYTES, self._segment_bytes, (self._limit_bytes or _ROOM_BYTES) // 2)

    def _has_room_for(self, more: int) -> bool:
        limit = self._limit_bytes
        return limit is None or self._sealed_bytes + self._end + more <= limit

    def _subtract_sealed(self, size: int) -> None:
        """Subtract a removed segment from the sealed bytes."""
        with self._lock:
            self._sealed_bytes -= size

    def _make(self, *, needs_room: bool = False) -> _Open:
        path = self._folder / f"{next(self._numbers):012d}{OPEN_SUFFIX}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _make_room(descriptor, self._room, needs_room=needs_room)
            fsync_path(self._folder)  # the file name, too, must survive a power cut
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        return _Open(path, descriptor)

    def _try_make(self) -> _Open | None:
        try:
            return self._make()
        except OSError as error:  # for example a full disk: the sealed segments must be flushed all the same
            log.warning("cannot create a segment for usage events; the next append tries again: %s", error)
            return None

    def _replace(self, fresh: _Open | None) -> None:
        """Seal the open segment, or delete it if it is empty; append to ``fresh`` from now on."""
        sealed, end = self._open, self._end
        self._open, self._end = fresh, 0
        self._sealed_bytes += end
        if sealed is None:
            return
        try:
            if end:
                os.ftruncate(sealed.descriptor, end)
                sealed.path.rename(sealed.path.with_suffix(SUFFIX))
            else:
                sealed.path.unlink(missing_ok=True)
        except OSError as error:  # its events are on the disk; the next start seals it
            log.error("%s could not be sealed: %s", sealed.path, error)
        finally:
            os.close(sealed.descriptor)

    def _truncate(self, descriptor: int) -> None:
        """Truncate a failed write and seal the segment, so that no line follows an incomplete one."""
        try:
            os.ftruncate(descriptor, self._end)
            os.fsync(descriptor)
        finally:
            self._replace(None)


def _size(path: Path) -> int:
    """Return a file's size; 0 if it was renamed or deleted meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _make_room(descriptor: int, size: int, *, needs_room: bool) -> None:
    """Pre-allocate a new file by writing zeros, and seek to its start.

    On a full disk, raise OSError if ``needs_room``, else leave the file empty.
    """
    try:
        _write_all(descriptor, bytes(size))
        os.fsync(descriptor)
    except OSError as error:  # a nearly full disk: appends will let the file grow
        if needs_room:
            raise
        log.warning("cannot pre-allocate a segment for usage events: %s", error)
        os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)


def _lock_folder(folder: Path) -> BinaryIO:
    lock = (folder / LOCK_NAME).open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise SpoolInUseError(f"{folder} is in use by another process") from error
    return lock
