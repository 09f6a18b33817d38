"""Which files a data source names, and opening them: a file, a folder or a zip archive of files.

The rules (docs/data.md):

- A file that is named itself is read, whatever its name.
- Of a folder or a zip archive, files with an ending of the source's format are read, in order of their names.
  Hidden files (``.x``, ``_x``) and files like README or LICENSE are not.
- Names that say which split a file belongs to are heeded: ``train-00000.jsonl``, ``test/rows.jsonl``. What is
  learnt from is read from files named for training where there are any, else from those that name no split;
  evaluation rows from files named for testing, else for validation, else from those that name no split.

Everything is bounded: the number of files, what a compressed file unpacks to, archives in archives.
"""

import bz2
import gzip
import io
import lzma
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem

from hmi_api.errors import HmiError, InvalidInput
from hmi_api.internal.storable import clean_text
from hmi_api.resources.common import DataRead, DataSource
from hmi_runtime.library_errors import invalid_if_damaged
from hmi_runtime.outbound.clients import open_address
from hmi_runtime.training.resumable_io import open_file, read_error, retry

FILES_SHOWN = 20
LABELS_SHOWN = 50
MOST_FILES = 10_000
"""Files and folders of one source, at most."""
DEEPEST_FOLDER = 10
MOST_REMOTE_ARCHIVE_BYTES = 512 << 20
"""A zip archive is copied before it is read; a larger one must be unpacked where it is."""
FREE_UNPACKED_BYTES = 16 << 20
MOST_UNPACKED = 250
"""Times its size that a compressed file may unpack to, beyond ``FREE_UNPACKED_BYTES``."""

_SUFFIXES = {
    "JSONLines": (".jsonl", ".ndjson", ".json"),
    "Text": (".txt", ".text", ".md"),
    "CSV": (".csv",),
}
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
_ABOUT = {
    "readme",
    "license",
    "licence",
    "copying",
    "notice",
    "changelog",
    "changes",
    "contributing",
    "authors",
    "citation",
    "code_of_conduct",
    "dataset_card",
    "datasheet",
}
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_CENTRAL_HEADER = b"PK\x01\x02"
_SIGNATURES_A_FILE = 20  # a stored archive within an archive brings such bytes of its own
_CHUNK_BYTES = 1 << 20
_NAMED_AT_MOST = 10
_LONGEST_SHOWN = 100  # characters of a name in the status
_CURE = "is it whole and what its ending says? Give it again."


class DataUse(StrEnum):
    """What rows are read for, which says the splits that are wanted, the best first."""

    CORPUS = "corpus"
    TRAIN = "train"
    UNLABELLED = "unlabelled"
    EVALUATION = "evaluation"

    @property
    def splits(self) -> tuple[str | None, ...]:
        """Splits in the order of preference; None stands for files that name no split."""
        return ("test", "validation", None) if self is DataUse.EVALUATION else ("train", None)


@dataclass
class SourceStats:
    """What is read of one source: files, rows and labels, and what is skipped and why."""

    use: DataUse
    uri: str = ""
    files: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    rows: int = 0
    labels: Counter[str] = field(default_factory=Counter)

    held_out: int | None = None

    def report(self) -> DataRead:
        """Return what the status shows of it: counts, and the first or most frequent names."""
        return DataRead(
            use=self.use.value,
            uri=self.uri,
            rows=self.rows,
            file_count=len(self.files),
            files=[_short(name) for name in self.files[:FILES_SHOWN]],
            skipped_count=len(self.skipped),
            skipped=[_short(name) for name in self.skipped[:FILES_SHOWN]],
            label_count=len(self.labels),
            labels={_short(name): count for name, count in self.labels.most_common(LABELS_SHOWN)},
            held_out=self.held_out,
        )


@dataclass(frozen=True)
class DataFile:
    """One file of rows."""

    place: str
    """How messages name it."""
    name: str
    """Its name within the source."""
    open: Callable[[], BinaryIO]
    """Opens it, unpacked; to be closed by who opens it."""


@contextmanager
def open_source(source: DataSource, reading: SourceStats) -> Iterator[Iterator[DataFile]]:
    """Give the files to read of ``source``, in order; ``reading`` says which are read and which are skipped.

    Raises ``InvalidInput``: CorpusNotFound; CorpusEmpty where no file is of the format or of a split that is
    wanted; CorpusNotText for a kind of file that is not read, and for a damaged archive; CorpusTooLarge.
    Raises ``NotReady`` SourceAway.
    """
    reading.uri = source.uri
    with _reading_from(source.uri):
        filesystem, path = open_address(source.uri)
        is_file = retry(lambda: filesystem.info(path), source.uri)["type"] == "file"
    name = path.rsplit("/", 1)[-1]
    if not is_file:
        yield _files_of_folder(filesystem, path.rstrip("/"), source, reading)
    elif _ending(name) == _ARCHIVE:
        with _archive(filesystem, path, source.uri) as archive:
            yield _files_of_archive(archive, path, source, reading)
    else:
        _check_kind(name, path)
        reading.files.append(name)
        yield iter([_plain_file(filesystem, path, name, source.uri)])


def _check_kind(name: str, path: str) -> None:
    inner = name[: -len(_ending(name))] if _ending(name) in _DECOMPRESSORS else name
    cure = _UNREAD.get(_ending(inner))
    if cure is not None:
        raise InvalidInput("CorpusNotText", f"{path} is of a kind that is not read; {cure}.")


@contextmanager
def _reading_from(uri: str) -> Iterator[None]:
    try:
        yield
    except HmiError:
        raise
    except Exception as error:  # every file system has its own kinds
        raise read_error(uri, "CorpusNotFound", error) from error


def _plain_file(filesystem: Any, path: str, name: str, uri: str) -> DataFile:
    def opened() -> BinaryIO:
        file = open_file(filesystem, path, uri)
        decompress = _DECOMPRESSORS.get(_ending(name))
        if decompress is None:
            return file
        packed = _Counted(file)
        unpacked = decompress(cast(BinaryIO, io.BufferedReader(packed, _CHUNK_BYTES)))
        return _unpacked(unpacked, path, lambda: packed.count, [unpacked, file])

    return DataFile(path, name, opened)


def _files_of_folder(
    filesystem: Any, root: str, source: DataSource, reading: SourceStats
) -> Iterator[DataFile]:
    with _reading_from(source.uri):
        names = retry(lambda: _names_below(filesystem, root, source.uri), source.uri)
    reading.files, reading.skipped = _chosen(names, source, reading.use)
    return (_plain_file(filesystem, f"{root}/{name}", name, source.uri) for name in reading.files)


def _names_below(filesystem: Any, root: str, uri: str) -> list[str]:
    """Return the names of all files below ``root``, relative to it; what is in hidden folders is left out."""
    found: list[str] = []
    seen = 0
    for folder, folders, files in filesystem.walk(
        root, maxdepth=DEEPEST_FOLDER, on_error="raise", detail=True
    ):
        below = folder.rstrip("/").removeprefix(root).strip("/")
        for name in [name for name in folders if _is_hidden(name)]:
            del folders[name]
        if folders and below.count("/") + bool(below) >= DEEPEST_FOLDER - 1:
            raise InvalidInput(
                "CorpusTooLarge",
                f"{uri} has folders in folders more than {DEEPEST_FOLDER} deep (is one a link to a folder "
                "above "
                "it?); name a folder further down.",
            )
        seen += len(folders) + len(files)
        _check_count(seen, uri)
        found.extend(f"{below}/{name}" if below else name for name in files if name)
    return found


def _files_of_archive(
    archive: zipfile.ZipFile, path: str, source: DataSource, reading: SourceStats
) -> Iterator[DataFile]:
    entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
    _check_count(len(entries), source.uri)
    visible = [name for name in entries if not any(_is_hidden(part) for part in name.split("/")[:-1])]
    reading.files, reading.skipped = _chosen(visible, source, reading.use)
    return (_archived_file(archive, entries[name], path) for name in reading.files)


def _archived_file(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: str) -> DataFile:
    place = f"{path}/{entry.filename}"

    def opened() -> BinaryIO:
        if entry.flag_bits & 1:
            raise InvalidInput("CorpusNotText", f"{place} is encrypted; give the archive without a password.")
        with invalid_if_damaged("CorpusNotText", place, _CURE):
            unpacked = archive.open(entry)
        return _unpacked(unpacked, place, lambda: entry.compress_size, [unpacked])

    return DataFile(place, entry.filename, opened)


@contextmanager
def _archive(filesystem: Any, path: str, uri: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive; one that is not on this machine is copied to a temporary file first."""
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
                f"{uri} is an archive of more than {MOST_REMOTE_ARCHIVE_BYTES >> 20} MiB, which must be "
                "copied "
                "whole before it is read; unpack it where it is and name the folder, or compress each file.",
            )
        copy.write(chunk)


def _check_directory(file: BinaryIO, uri: str) -> None:
    """Refuse an archive whose directory alone would fill the memory: zipfile reads all of it at once."""
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
            f"{uri} holds more than {MOST_FILES} files and folders; join them into fewer, larger files.",
        )


def _chosen(names: Sequence[str], source: DataSource, use: DataUse) -> tuple[list[str], list[str]]:
    """Return the names to read, sorted, and those to skip with the reason.

    Raises ``InvalidInput`` CorpusEmpty when there are files but none to read.
    """
    by_split: dict[str | None, list[str]] = {}
    skipped = []
    for name in sorted(names):
        if (why := _why_no_rows(name, source.format)) is not None:
            skipped.append(f"{name} ({why})")
        else:
            by_split.setdefault(split_from_name(name), []).append(name)
    wanted = next((split for split in use.splits if split in by_split), None)
    chosen = by_split.pop(wanted, [])
    if by_split and not chosen:
        found = ", ".join(sorted(str(split) for split in by_split))
        raise InvalidInput(
            "CorpusEmpty",
            f"{source.uri} has files named for {found} only, and is read for {use.value}; name the file "
            "itself "
            "to read it all the same, or rename it.",
        )
    if names and not chosen:
        raise InvalidInput(
            "CorpusEmpty",
            f"{source.uri} has no file for format {source.format} (ending in "
            f"{', '.join(_SUFFIXES[source.format])}), but {', '.join(skipped[:_NAMED_AT_MOST])}; "
            "rename its files or set format.",
        )
    others = [
        f"{name} ({f'named for {split}' if split else 'others are named for ' + str(wanted)})"
        for split, left in by_split.items()
        for name in left
    ]
    return chosen, sorted(skipped + others)


def _why_no_rows(name: str, format_: str) -> str | None:
    """Return why a file of a folder is not read; None for one that is."""
    last = name.rsplit("/", 1)[-1].lower()
    if _is_hidden(last):
        return "hidden"
    if _ending(last) in _DECOMPRESSORS:
        last = last.removesuffix(_ending(last))
    if last.split(".")[0] in _ABOUT:
        return "about the data"
    if not last.endswith(_SUFFIXES[format_]):
        return f"not {format_}"
    return None


def split_from_name(name: str) -> str | None:
    """Return the split that a file's path names: "train", "validation", "test", or None.

    A word of the file's name counts where it comes first or last (``train-00000-of-00002.jsonl``,
    ``reviews_test.csv``), else the name of the nearest folder (``test/rows.jsonl``).
    """
    *folders, file = name.lower().split("/")
    words = [word for word in re.split(r"[^a-z]+", file.split(".")[0]) if word]
    for word in (*words[:1], *words[-1:], *reversed(folders)):
        if word in _SPLIT_WORDS:
            return _SPLIT_WORDS[word]
    return None


def _short(name: str) -> str:
    name = clean_text(name)  # names of files need not be UTF-8
    return name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}..."


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def _ending(name: str) -> str:
    dot = name.rfind(".")
    return name[dot:].lower() if dot >= 0 else ""


class _Counted(io.RawIOBase):
    """A file that counts the bytes that are read of it."""

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
    """What a compressed file unpacks to, within bounds.

    Reading raises ``InvalidInput``: CorpusNotText where the bytes are damaged, CorpusTooLarge where a small
    file unpacks to a huge one.
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
