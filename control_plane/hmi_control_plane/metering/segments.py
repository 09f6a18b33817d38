"""Segment files: checksummed lines, appended and synced, sealed, read back and deleted.

A segment is named by a growing number: ``000000000001.open`` while it is appended to, then
``000000000001.events``. Each line is ``{json}\t{crc32}\n``; JSON never holds a raw tab, so the last one parts
the two. Zeros after the last line are room that was not used. Everything here is synchronous and safe to call
from several threads.
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

from hmi_control_plane.metering.events import UsageEvent, from_cloud_event

log = logging.getLogger(__name__)

SUFFIX = ".events"
OPEN_SUFFIX = ".open"
DAMAGED_SUFFIX = ".damaged"
LOCK_NAME = "lock"

_ROOM_BYTES = 256 * 1024


class SpoolInUseError(Exception):
    """Another process appends to this folder; each process needs a folder of its own."""


class SpoolFullError(OSError):
    """The folder holds as many bytes of events as it may."""


@dataclass(frozen=True)
class SegmentContents:
    """What a sealed segment holds.

    ``torn`` counts bytes after the last whole line: what a crash left of a write nobody was told of.
    ``damaged`` counts unreadable lines before that: those may have been acknowledged.
    """

    events: list[UsageEvent]
    torn: int
    damaged: int


def encode_line(json_line: str) -> bytes:
    """Return the stored form of one event's JSON."""
    body = json_line.encode()
    return b"%s\t%08x\n" % (body, zlib.crc32(body))


def read_segment(path: Path) -> SegmentContents:
    """Return a segment's readable events and how much of it was not readable."""
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
        log.exception("a usage event with a right checksum cannot be read: %r", body)
        return None


@dataclass(frozen=True, slots=True)
class _Open:
    """A segment that is appended to."""

    path: Path
    descriptor: int


class SegmentFolder:
    """The folder of segments of one process: one open for appending, the others sealed.

    Whatever an earlier process left behind is sealed. Call ``open`` before anything else. Who seals makes the
    next segment too, with its name and some room on the disk: an append into it syncs its bytes alone, where
    a file that grows would wait for the file system's journal, and so for whatever else is being written.

    At most ``limit_bytes`` of events wait here; None: as many as the disk takes. Once an append failed, the
    folder ``is_full`` until another one succeeds or ``make_room`` finds that one would.
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
        """Make the folder and take it. Raises SpoolInUseError when a living process has it."""
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

        Raises OSError when they may not be; then none of them will be read back.
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
        if not self._may_hold(len(data)):
            raise SpoolFullError(f"{self._folder} holds its limit of {self._limit_bytes} bytes")
        if self._open is None:
            self._open = self._make()
        descriptor = self._open.descriptor
        try:
            _write_all(descriptor, data)
            os.fdatasync(descriptor)
        except OSError:
            self._cut_back(descriptor)
            raise
        self._end += len(data)
        if self._end >= self._segment_bytes:
            self._replace(None)

    @property
    def is_full(self) -> bool:
        """Whether the last append failed, and nothing says that the next one would not."""
        return self._full

    def make_room(self) -> None:
        """Where the folder is full, see whether an append would succeed by now. Cheap where it is not."""
        if not self._full:
            return
        with self._lock:
            if not self._may_hold(self._room):
                return
            try:
                self._open = self._open or self._make(needs_room=True)
            except OSError:
                return
            self._full = False

    def seal(self) -> list[Path]:
        """Seal the open segment, if it holds anything, and return all sealed ones, oldest first."""
        if self._end:
            fresh = self._try_make()  # while others append
            with self._lock:
                self._replace(fresh)
        return sorted(self._folder.glob(f"*{SUFFIX}"))

    def remove(self, segment: Path) -> None:
        """Delete a sealed segment; call it only when its events are safe elsewhere."""
        size = _size(segment)
        segment.unlink(missing_ok=True)
        self._leave(size)

    def set_aside(self, segment: Path) -> Path:
        """Keep a damaged segment for a person to look at, out of the way of further reading."""
        self._leave(_size(segment))
        return segment.rename(segment.with_suffix(DAMAGED_SUFFIX))

    def unflushed_bytes(self) -> int:
        """Return the bytes of all events that are still here."""
        return self._end + sum(map(_size, self._folder.glob(f"*{SUFFIX}")))

    def close(self) -> None:
        """Seal and let another process have the folder."""
        with self._lock:
            self._replace(None)
            if self._folder_lock is not None:
                self._folder_lock.close()
                self._folder_lock = None

    @property
    def _room(self) -> int:
        """Bytes that a new segment has room for."""
        return min(_ROOM_BYTES, self._segment_bytes, (self._limit_bytes or _ROOM_BYTES) // 2)

    def _may_hold(self, more: int) -> bool:
        limit = self._limit_bytes
        return limit is None or self._sealed_bytes + self._end + more <= limit

    def _leave(self, size: int) -> None:
        """Count a sealed segment of ``size`` bytes no more."""
        with self._lock:
            self._sealed_bytes -= size

    def _make(self, *, needs_room: bool = False) -> _Open:
        path = self._folder / f"{next(self._numbers):012d}{OPEN_SUFFIX}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _make_room(descriptor, self._room, needs_room=needs_room)
            _sync_folder(self._folder)  # the name must survive a power cut, not only the bytes
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        return _Open(path, descriptor)

    def _try_make(self) -> _Open | None:
        try:
            return self._make()
        except OSError as error:  # a full disk, say; what is sealed must leave it all the same
            log.warning("no new segment for usage events; the next append tries again: %s", error)
            return None

    def _replace(self, fresh: _Open | None) -> None:
        """Seal the open segment, or remove it when it is empty, and append to ``fresh`` from now on."""
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

    def _cut_back(self, descriptor: int) -> None:
        """Take a failed write out again and leave the segment, so that no later line follows its remains."""
        try:
            os.ftruncate(descriptor, self._end)
            os.fsync(descriptor)
        finally:
            self._replace(None)


def _size(path: Path) -> int:
    """Return a file's bytes; 0 when it was renamed or deleted meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _make_room(descriptor: int, size: int, *, needs_room: bool) -> None:
    """Fill a new file with zeros, on the disk, and go back to its beginning.

    Raises OSError on a full disk if it ``needs_room``; else the file is left empty there.
    """
    try:
        _write_all(descriptor, bytes(size))
        os.fsync(descriptor)
    except OSError as error:  # a disk that is nearly full; without room, appends make the file grow
        if needs_room:
            raise
        log.warning("no room made for usage events: %s", error)
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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
