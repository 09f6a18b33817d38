"""Read rows from JSON Lines, plain text or CSV, from any address that fsspec opens.

Rows are streamed: no more than one is in memory. Error messages name the file and line.
``source_files`` selects the files.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from hmi_api.errors import InvalidInput
from hmi_api.resources.common import DataSource
from hmi_api.resources.data_addresses import scheme_of
from hmi_runtime.library_errors import describe_error
from hmi_runtime.training.file_selection import DataUse, SourceStats
from hmi_runtime.training.source_files import open_source

LONGEST_LINE = 16 << 20
"""Most bytes of a line or CSV cell. A longer one is not text, and would fill the memory."""
LONGEST_ROW = 64 << 20
"""Most characters of a CSV row, which can span many lines."""
MOST_BLANK_LINES = 1_000_000
"""Most blank lines in sequence."""

_LFS_POINTER = "version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Row:
    """One row: its fields and its place, such as ``shop/train.jsonl, line 7``."""

    place: str
    fields: Mapping[str, object]


def read_rows(source: DataSource, stats: SourceStats) -> Iterator[Row]:
    """Yield the rows of ``source``; a plain text's rows have the one field ``text``.

    ``stats`` names the use of the rows and counts what was read. Blank lines are skipped; a source without
    rows yields nothing. Raises ``InvalidInput``: CorpusNotFound, CorpusEmpty (no file to read), CorpusNotText
    (binary, not UTF-8, an unsupported file type, damaged), CorpusTooLarge, RowMalformed; ``NotReady``
    SourceAway when the network stays unavailable.
    """
    with open_source(source, stats) as files:
        for data in files:
            with data.open() as file:
                for row in _PARSERS[source.format](file, data.place):
                    stats.rows += 1
                    yield row


def read_texts(
    sources: Iterable[DataSource], use: DataUse = DataUse.CORPUS, all_stats: list[SourceStats] | None = None
) -> Iterator[str]:
    """Yield the unlabelled texts of all ``sources``, in order, without blank ones.

    A list of words is joined by spaces. Statistics of each source are appended to ``all_stats``.
    Raises ``InvalidInput`` CorpusEmpty when there is no text at all, FieldMissing, and what ``read_rows``
    raises.
    """
    found = False
    addresses = []
    for source in sources:
        addresses.append(source.uri)
        stats = SourceStats(use)
        if all_stats is not None:
            all_stats.append(stats)
        for row in read_rows(source, stats):
            text = text_of(row, source)
            if text.strip():
                found = True
                yield text
    if not found:
        raise InvalidInput(
            "CorpusEmpty",
            f"No text was found in {', '.join(addresses)}; give a corpus with at least one row.",
        )


def field_value(row: Row, name: str) -> object:
    """Return a field of a row. Raises ``InvalidInput`` FieldMissing, which names the row's fields."""
    if name in row.fields:
        return row.fields[name]
    problem = f"{row.place} has no field {name!r}"
    if scheme_of(row.place) in ("http", "https"):  # it may be an error page of any server: not shown
        raise InvalidInput("FieldMissing", f"{problem}. Correct the address, or name one it has.")
    there = ", ".join(sorted(row.fields)) or "none"
    advice = "Add the field, or name one of these in the spec (labelField, textField, ...)."
    raise InvalidInput("FieldMissing", f"{problem}; its fields are: {there}. {advice}")


def text_of(row: Row, source: DataSource) -> str:
    """Return a row's text; a list of words is joined by spaces."""
    name = "text" if source.format == "Text" else source.text_field
    value = field_value(row, name)
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return " ".join(value)
    raise InvalidInput("RowMalformed", f"{row.place}: field {name!r} is not text; make it a string.")


def words_value(row: Row, name: str) -> list[str]:
    """Return a field's list of words; a string (as CSV has it) is split at spaces."""
    value = field_value(row, name)
    if isinstance(value, str):
        return value.split()
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return list(value)
    raise InvalidInput("RowMalformed", f"{row.place}: field {name!r} is not a list of strings.")


def _lines(file: BinaryIO, path: str) -> Iterator[tuple[str, str]]:
    """Yield each non-blank line with its place."""
    number = blank = 0
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
        if number == 1:
            _check_not_lfs_pointer(text, path)
        if text.strip():
            blank = 0
            yield place, text
            continue
        blank += 1
        if blank > MOST_BLANK_LINES:
            raise InvalidInput(
                "CorpusNotText", f"{place} is the last of {blank} blank lines; give a file of rows."
            )


def _not_text(place: str) -> InvalidInput:
    return InvalidInput("CorpusNotText", f"{place} is not UTF-8 text; give text, not a binary file.")


def _check_not_lfs_pointer(line: str, path: str) -> None:
    if line.startswith(_LFS_POINTER):
        raise InvalidInput(
            "CorpusNotText",
            f"{path} is a git-lfs pointer, not the file itself; run git lfs pull in its repository.",
        )


def _parse_text(file: BinaryIO, path: str) -> Iterator[Row]:
    for place, line in _lines(file, path):
        yield Row(place, {"text": line})


def _parse_json_lines(file: BinaryIO, path: str) -> Iterator[Row]:
    for place, line in _lines(file, path):
        try:
            value = json.loads(line)
            if "\\ud" in line.lower():  # JSON can escape half of a surrogate pair, which is not text
                json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(
                "RowMalformed", f"{place} has half of a surrogate pair, which is no character; remove it."
            ) from error
        except (ValueError, RecursionError) as error:
            raise InvalidInput(
                "RowMalformed",
                f"{place} is not JSON ({describe_error(error)}); write one JSON object a line.",
            ) from error
        if not isinstance(value, dict):
            raise InvalidInput("RowMalformed", f"{place} is not a JSON object; write one object a line.")
        yield Row(place, value)


def _parse_csv(file: BinaryIO, path: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_LINE)  # the library's own limit is 131,072 characters
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        lines = _CsvLines(text, path)
        reader = csv.reader(lines, strict=True)
        names: list[str] = []
        while (values := _next_csv(reader, lines)) is not None:
            if not values:
                continue
            if not names:
                names = values
                _check_header(names, lines.place)
            elif len(values) != len(names):
                raise InvalidInput(
                    "RowMalformed",
                    f"{lines.place}: the row has {len(values)} fields and the header {len(names)}.",
                )
            else:
                yield Row(lines.place, dict(zip(names, values, strict=True)))


def _check_header(names: list[str], place: str) -> None:
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise InvalidInput(
            "RowMalformed", f"{place}: the header names {', '.join(repeated)} twice; name each column once."
        )


class _CsvLines:
    """The lines of a CSV file, bounded in length, with the line at which the current row begins."""

    def __init__(self, text: io.TextIOWrapper, path: str) -> None:
        self._text = text
        self._path = path
        self._number = 0
        self._first = 1
        self._characters = 0
        self._blank = 0

    @property
    def place(self) -> str:
        """The line at which the current row begins."""
        return f"{self._path}, line {self._first}"

    def begin_row(self) -> None:
        """Start a new row at the next line."""
        self._first, self._characters = self._number + 1, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._read()
        if not line:
            raise StopIteration
        self._number += 1
        self._characters += len(line)
        if self._number == 1:
            _check_not_lfs_pointer(line, self._path)
        if "\0" in line:
            raise _not_text(f"{self._path}, line {self._number}")
        if len(line) > LONGEST_LINE or self._characters > LONGEST_ROW:
            raise InvalidInput(
                "RowMalformed",
                f"{self.place}: the row is longer than {LONGEST_LINE} characters a line or {LONGEST_ROW} in "
                "all; is there a quote that is not closed?",
            )
        self._blank = 0 if line.strip() else self._blank + 1
        if self._blank > MOST_BLANK_LINES:
            raise InvalidInput(
                "CorpusNotText",
                f"{self.place} is followed by {self._blank} blank lines; give a file of rows.",
            )
        return line

    def _read(self) -> str:
        try:
            return self._text.readline(LONGEST_LINE + 1)
        except UnicodeDecodeError as error:
            raise _not_text(f"{self._path}, after line {self._number}") from error


def _next_csv(reader: Iterator[list[str]], lines: _CsvLines) -> list[str] | None:
    """Return the next row's values, [] for a blank line and None at the end."""
    lines.begin_row()
    try:
        return next(reader, None)
    except csv.Error as error:
        cure = f"split the cell, which is longer than {LONGEST_LINE} characters, or close its quotes"
        if "field limit" not in str(error):
            cure = "correct its quotes: write a quote within a cell twice, and close each quote"
        raise InvalidInput("RowMalformed", f"{lines.place}: the row is not CSV ({error}); {cure}.") from error


_PARSERS = {"JSONLines": _parse_json_lines, "Text": _parse_text, "CSV": _parse_csv}
