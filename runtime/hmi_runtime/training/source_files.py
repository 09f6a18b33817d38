"""Open the files of a data source: a file, the files of a folder, or those of a zip archive.

A source that is one file is read whatever its name. ``file_selection`` chooses the files of folders and
archives. The number of files, the size of what a compressed file unpacks to, and the depth of folders are
bounded.
"""

import bz2
import gzip
import io
import lzma
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem

from hmi_api.errors import InvalidInput
from hmi_api.resources.common import DataSource
from hmi_runtime.library_errors import invalid_if_damaged
from hmi_runtime.outbound.clients import open_address
from hmi_runtime.training.file_selection import SourceStats, choose_files, ending, is_hidden
from hmi_runtime.training.resumable_io import open_file, reading_from, retry

MOST_FILES = 10_000
"""Most files and folders of one source."""
DEEPEST_FOLDER = 10
MOST_REMOTE_ARCHIVE_BYTES = 512 << 20
"""Largest remote zip archive, which is copied before it is read."""
FREE_UNPACKED_BYTES = 16 << 20
MOST_UNPACKED = 250
"""A compressed file may unpack to ``FREE_UNPACKED_BYTES`` and this many times its size."""

_DECOMPRESSORS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".lzma": lzma.LZMAFile,
}
_ARCHIVE = ".zip"
_UNREAD = {
    **dict.fromkeys((".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar"), "unpack it, or give a zip archive"),
    **dict.fromkeys((".zst", ".lz4", ".snappy", ".sz", ".br", ".z"), "compress it with gzip, bzip2 or xz"),
    **dict.fromkeys(
        (".parquet", ".arrow", ".feather", ".orc", ".avro"), "save its rows as JSON Lines or CSV"
    ),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save its rows as CSV"),
}
_CENTRAL_HEADER = b"PK\x01\x02"
_SIGNATURES_A_FILE = 20  # an archive stored in an archive adds signatures of its own
_CHUNK_BYTES = 1 << 20
_CURE = "check that it is complete and of the kind that its ending says."


@dataclass(frozen=True)
class DataFile:
    """One file of rows."""

    place: str
    """Its name in messages."""
    open: Callable[[], BinaryIO]
    """Open it, decompressed; the caller closes it."""


@contextmanager
def open_source(source: DataSource, stats: SourceStats) -> Iterator[Iterator[DataFile]]:
    """Yield the files of ``source`` to read, in order; record read and skipped files in ``stats``.

    Raises ``InvalidInput``: CorpusNotFound; CorpusEmpty if no file is of the format or of a wanted split;
    CorpusNotText for an unsupported kind of file and for a damaged archive; CorpusTooLarge. Raises
    ``NotReady`` SourceAway.
    """
    stats.uri = source.uri
    with reading_from(source.uri, "CorpusNotFound"):
        filesystem, path = open_address(source.uri)
        is_file = retry(lambda: filesystem.info(path), source.uri)["type"] == "file"
    name = path.rsplit("/", 1)[-1]
    if not is_file:
        root = path.rstrip("/")
        with reading_from(source.uri, "CorpusNotFound"):
            names = retry(lambda: _names_below(filesystem, root, source.uri), source.uri)
        chosen = choose_files(names, source, stats)
        yield (_plain_file(filesystem, f"{root}/{name}", source.uri) for name in chosen)
    elif ending(name) == _ARCHIVE:
        with _archive(filesystem, path, source.uri) as archive:
            entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
            _check_count(len(entries), source.uri)
            visible = [name for name in entries if not any(map(is_hidden, name.split("/")[:-1]))]
            chosen = choose_files(visible, source, stats)
            yield (_archived_file(archive, entries[name], path) for name in chosen)
    else:
        _check_kind(name, path)
        stats.files.append(name)
        yield iter([_plain_file(filesystem, path, source.uri)])


def _check_kind(name: str, path: str) -> None:
    inner = name[: -len(ending(name))] if ending(name) in _DECOMPRESSORS else name
    cure = _UNREAD.get(ending(inner))
    if cure is not None:
        raise InvalidInput("CorpusNotText", f"{path} is of a kind that is not read; {cure}.")


def _plain_file(filesystem: Any, path: str, uri: str) -> DataFile:
    def opened() -> BinaryIO:
        file = open_file(filesystem, path, uri)
        decompress = _DECOMPRESSORS.get(ending(path))
        if decompress is None:
            return file
        packed = _Counted(file)
        unpacked = decompress(cast(BinaryIO, io.BufferedReader(packed, _CHUNK_BYTES)))
        return _unpacked(unpacked, path, lambda: packed.count, [unpacked, file])

    return DataFile(path, opened)


def _names_below(filesystem: Any, root: str, uri: str) -> list[str]:
    """Return the paths of all files below ``root``, relative to it, without those in hidden folders."""
    found: list[str] = []
    seen = 0
    for folder, folders, files in filesystem.walk(
        root, maxdepth=DEEPEST_FOLDER, on_error="raise", detail=True
    ):
        below = folder.rstrip("/").removeprefix(root).strip("/")
        for name in [name for name in folders if is_hidden(name)]:
            del folders[name]
        if folders and below.count("/") + bool(below) >= DEEPEST_FOLDER - 1:
            raise InvalidInput(
                "CorpusTooLarge",
                f"{uri} has folders more than {DEEPEST_FOLDER} deep (is one a link to a folder above it?); "
                "give the address of a folder further down.",
            )
        seen += len(folders) + len(files)
        _check_count(seen, uri)
        found.extend(f"{below}/{name}" if below else name for name in files if name)
    return found


def _archived_file(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: str) -> DataFile:
    place = f"{path}/{entry.filename}"

    def opened() -> BinaryIO:
        if entry.flag_bits & 1:
            raise InvalidInput("CorpusNotText", f"{place} is encrypted; give the archive without a password.")
        with invalid_if_damaged("CorpusNotText", place, _CURE):
            unpacked = archive.open(entry)
        return _unpacked(unpacked, place, lambda: entry.compress_size, [unpacked])

    return DataFile(place, opened)


@contextmanager
def _archive(filesystem: Any, path: str, uri: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive; copy a remote one to a temporary file first."""
    with open_file(filesystem, path, uri) as file, tempfile.TemporaryFile() as copy:
        local = file if isinstance(filesystem, LocalFileSystem) else cast(BinaryIO, copy)
        if local is not file:
            _copy(file, local, uri)
        _check_directory(local, uri)
        with invalid_if_damaged("CorpusNotText", path, _CURE):
            archive = zipfile.ZipFile(local)
        with archive:
            yield archive


def _copy(file: BinaryIO, copy: BinaryIO, uri: str) -> None:
    size = 0
    while chunk := file.read(_CHUNK_BYTES):
        size += len(chunk)
        if size > MOST_REMOTE_ARCHIVE_BYTES:
            raise InvalidInput(
                "CorpusTooLarge",
                f"{uri} is an archive of more than {MOST_REMOTE_ARCHIVE_BYTES >> 20} MiB, which would be "
                "copied whole before it is read; unpack it and give the folder's address, or compress each "
                "file.",
            )
        copy.write(chunk)


def _check_directory(file: BinaryIO, uri: str) -> None:
    """Refuse an archive whose directory alone would fill the memory, since zipfile reads it at once."""
    file.seek(0)
    entries, end = 0, b""
    while chunk := file.read(_CHUNK_BYTES):
        entries += (end + chunk).count(_CENTRAL_HEADER)
        end = chunk[1 - len(_CENTRAL_HEADER) :]
        _check_count(entries // _SIGNATURES_A_FILE, uri)
    file.seek(0)


def _check_count(count: int, uri: str) -> None:
    if count > MOST_FILES:
        raise InvalidInput(
            "CorpusTooLarge",
            f"{uri} has more than {MOST_FILES} files and folders; join them into fewer, larger files.",
        )


class _Counted(io.RawIOBase):
    """A file that counts the bytes read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)


class _Unpacked(io.RawIOBase):
    """A compressed file's unpacked bytes, bounded in number.

    Reading raises ``InvalidInput``: CorpusNotText if the bytes are damaged, CorpusTooLarge if a small file
    unpacks to a huge one.
    """

    def __init__(
        self, unpacked: Any, place: str, packed_bytes: Callable[[], int], to_close: Sequence[Any]
    ) -> None:
        self._unpacked = unpacked
        self._place = place
        self._packed_bytes = packed_bytes
        self._to_close = to_close
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with invalid_if_damaged("CorpusNotText", self._place, _CURE):
            data = self._unpacked.read(len(buffer))
        buffer[: len(data)] = data
        self._count += len(data)
        if self._count > FREE_UNPACKED_BYTES + MOST_UNPACKED * self._packed_bytes():
            raise InvalidInput(
                "CorpusTooLarge",
                f"{self._place} unpacks to more than {MOST_UNPACKED} times its size; give it uncompressed.",
            )
        return len(data)

    def close(self) -> None:
        for file in self._to_close:
            file.close()
        super().close()


def _unpacked(file: Any, place: str, packed_bytes: Callable[[], int], to_close: Sequence[Any]) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Unpacked(file, place, packed_bytes, to_close), _CHUNK_BYTES))
