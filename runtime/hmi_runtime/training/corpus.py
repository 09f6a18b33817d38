"""Streams rows from where the user keeps them: JSON Lines, plain text or CSV; a file or a folder of
files; any address that fsspec opens. Never holds more than a row, and blames a row by file and line.
"""

import csv
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import fsspec

from hmi_api.common import DataSource
from hmi_api.errors import HmiError, InvalidInput
from hmi_runtime.training.remote import open_rows, tried, unreadable

LONGEST_LINE = 16 * 2**20  # bytes; a longer one is no row of text, and must not fill the memory

_SUFFIXES = {
    "JSONLines": (".jsonl", ".ndjson", ".json"),
    "Text": (".txt", ".text", ".md"),
    "CSV": (".csv",),
}
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_NOT_UNPACKED = (EOFError, OSError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class Row:
    """One row: its fields and where it stands, such as ``shop/train.jsonl, line 7``."""

    place: str
    fields: Mapping[str, object]


def read_rows(source: DataSource) -> Iterator[Row]:
    """Yield the rows of ``source``; a plain text's rows have the one field ``text``.

    Raises ``InvalidInput``: CorpusNotFound, CorpusNotText (binary, not UTF-8, or compressed and damaged),
    RowMalformed; ``NotReady`` SourceAway when what it is read from over the network stays away.
    Blank lines are no rows. An empty source yields nothing: what that means is the caller's to say.
    """
    filesystem, paths = _files(source)
    for path in paths:
        try:
            with open_rows(filesystem, path, source.uri) as file:
                yield from _PARSERS[source.format](file, path)
        except _NOT_UNPACKED as error:
            if not path.lower().endswith(_COMPRESSIONS):
                raise
            raise InvalidInput(
                "CorpusNotText",
                f"{path} cannot be unpacked ({error}); is it whole and what its ending says? Give it again.",
            ) from error


def read_texts(sources: Iterable[DataSource]) -> Iterator[str]:
    """Yield the unlabelled texts of all ``sources``, one after another; blank ones are left out.

    A list of words counts as text, joined by spaces. Raises ``InvalidInput`` CorpusEmpty when there is
    no text at all, FieldMissing, and what ``read_rows`` raises.
    """
    found = False
    addresses = []
    for source in sources:
        addresses.append(source.uri)
        name = "text" if source.format == "Text" else source.text_field
        for row in read_rows(source):
            text = text_of(row, name)
            if text.strip():
                found = True
                yield text
    if not found:
        raise InvalidInput(
            "CorpusEmpty",
            f"No text was found in {', '.join(addresses)}; give a corpus with at least one row.",
        )


def field(row: Row, name: str) -> object:
    """Return a field of a row; ``InvalidInput`` FieldMissing names those that are there."""
    if name not in row.fields:
        there = ", ".join(sorted(row.fields)) or "none"
        raise InvalidInput(
            "FieldMissing", f"{row.place} has no field {name!r}; its fields are: {there}. Name one of them."
        )
    return row.fields[name]


def text_of(row: Row, name: str) -> str:
    """Return a field's text; a list of words is joined by spaces."""
    value = field(row, name)
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return " ".join(value)
    raise InvalidInput("RowMalformed", f"{row.place}: field {name!r} is not text; make it a string.")


def words_of(row: Row, name: str) -> list[str]:
    """Return a field's list of words; a string (as CSV has it) is split at spaces."""
    value = field(row, name)
    if isinstance(value, str):
        return value.split()
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return list(value)
    raise InvalidInput("RowMalformed", f"{row.place}: field {name!r} is not a list of strings.")


def _files(source: DataSource) -> tuple[Any, Sequence[str]]:
    """Return the file system and the files, sorted, that a source names."""
    try:
        filesystem, path = fsspec.core.url_to_fs(source.uri)
        if tried(lambda: filesystem.info(path), source.uri)["type"] == "file":
            return filesystem, [path]
        inside = sorted(tried(lambda: filesystem.find(path), source.uri))
    except HmiError:
        raise
    except FileNotFoundError as error:
        raise InvalidInput("CorpusNotFound", f"{source.uri} does not exist; check the address.") from error
    except Exception as error:  # every file system has its own kinds
        raise unreadable(source.uri, "CorpusNotFound", error) from error
    wanted = [name for name in inside if _is_data(name, source.format)]
    if inside and not wanted:
        endings = ", ".join(_SUFFIXES[source.format])
        raise InvalidInput(
            "CorpusEmpty",
            f"Folder {source.uri} has no file for format {source.format} (ending in {endings}); "
            "rename its files or set format.",
        )
    return filesystem, wanted


def _is_data(path: str, format_: str) -> bool:
    name = path.rsplit("/", 1)[-1].lower()
    for ending in _COMPRESSIONS:
        name = name.removesuffix(ending)
    return not name.startswith((".", "_")) and name.endswith(_SUFFIXES[format_])


def _lines(file: BinaryIO, path: str) -> Iterator[tuple[str, str]]:
    """Yield each line that is not blank with its place."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        place = f"{path}, line {number}"
        if b"\0" in line:
            raise _not_text(place)
        if len(line) > LONGEST_LINE:
            raise InvalidInput("RowMalformed", f"{place} is longer than {LONGEST_LINE} bytes; split it.")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
        except UnicodeDecodeError as error:
            raise _not_text(place) from error
        if text.strip():
            yield place, text


def _not_text(place: str) -> InvalidInput:
    return InvalidInput("CorpusNotText", f"{place} is not UTF-8 text; give text, not a binary file.")


def _parse_text(file: BinaryIO, path: str) -> Iterator[Row]:
    for place, line in _lines(file, path):
        yield Row(place, {"text": line})


def _parse_json_lines(file: BinaryIO, path: str) -> Iterator[Row]:
    for place, line in _lines(file, path):
        try:
            value = json.loads(line)
            if "\\ud" in line.lower():  # JSON can write half a character, which is no text
                json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(
                "RowMalformed", f"{place} holds half of a surrogate pair, which is no character; take it out."
            ) from error
        except (ValueError, RecursionError) as error:
            raise InvalidInput(
                "RowMalformed", f"{place} is not JSON ({error}); write one JSON object a line."
            ) from error
        if not isinstance(value, dict):
            raise InvalidInput("RowMalformed", f"{place} is not a JSON object; write one object a line.")
        yield Row(place, value)


def _parse_csv(file: BinaryIO, path: str) -> Iterator[Row]:
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        while (values := _next_csv(reader, path)) is not None:
            place = f"{path}, line {reader.line_num}"
            if None in values or None in values.values():
                raise InvalidInput("RowMalformed", f"{place}: the row has not as many fields as the header.")
            yield Row(place, values)


def _next_csv(reader: "csv.DictReader[str]", path: str) -> dict[str, object] | None:
    try:
        return next(reader, None)
    except UnicodeDecodeError as error:
        raise _not_text(f"{path}, after line {reader.line_num}") from error
    except csv.Error as error:
        raise InvalidInput(
            "RowMalformed", f"{path}, line {reader.line_num} is not CSV ({error}); mend its quotes."
        ) from error


_PARSERS = {"JSONLines": _parse_json_lines, "Text": _parse_text, "CSV": _parse_csv}
