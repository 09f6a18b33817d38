"""Which files of a folder or zip archive are read, by their names (docs/data.md).

- Files with an ending of the source's format are read, in the order of their names. Hidden files (``.x``,
  ``_x``) and files like README or LICENSE are not.
- File names and folders can name a split: ``train-00000.jsonl``, ``test/rows.jsonl``. Training rows and texts
  are read from files of the training split; if there are none, from files that name no split. Evaluation rows
  are read from the test split, else the validation split, else from files that name no split.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from hmi_api.errors import InvalidInput
from hmi_api.internal.storable import clean_text
from hmi_api.resources.common import DataRead, DataSource

FILES_SHOWN = 20
LABELS_SHOWN = 50
COMPRESSED = (".gz", ".bz2", ".xz", ".lzma")
"""Endings of compressed files that are read."""

_SUFFIXES = {
    "JSONLines": (".jsonl", ".ndjson", ".json"),
    "Text": (".txt", ".text", ".md"),
    "CSV": (".csv",),
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
_NAMED_AT_MOST = 10
_LONGEST_SHOWN = 100  # characters of a name in the status


class DataUse(StrEnum):
    """What rows are read for."""

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
    """What was read from one source: files, rows and labels; and which files were skipped, and why."""

    use: DataUse
    uri: str = ""
    files: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    rows: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    held_out: int | None = None

    def report(self) -> DataRead:
        """Return what the status shows: counts, and the first or most frequent names."""
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


def choose_files(names: Sequence[str], source: DataSource, stats: SourceStats) -> list[str]:
    """Return the files of ``source`` to read, sorted; record them and the skipped ones in ``stats``.

    ``names`` are paths within the source. Raises ``InvalidInput`` CorpusEmpty if there are files but none to
    read.
    """
    by_split: dict[str | None, list[str]] = {}
    skipped = []
    for name in sorted(names):
        if (why := _why_skipped(name, source.format)) is not None:
            skipped.append(f"{name} ({why})")
        else:
            by_split.setdefault(split_from_name(name), []).append(name)
    wanted = next((split for split in stats.use.splits if split in by_split), None)
    chosen = by_split.pop(wanted, [])
    if by_split and not chosen:
        found = ", ".join(sorted(str(split) for split in by_split))
        raise InvalidInput(
            "CorpusEmpty",
            f"{source.uri} has files named for {found} only, and is read for {stats.use.value}; rename the "
            "files, or give the address of one file.",
        )
    if names and not chosen:
        raise InvalidInput(
            "CorpusEmpty",
            f"{source.uri} has no file for format {source.format} (ending in "
            f"{', '.join(_SUFFIXES[source.format])}), but {', '.join(skipped[:_NAMED_AT_MOST])}; "
            "rename its files or set format.",
        )
    others = [
        f"{name} ({f'named for {split}' if split else f'others are named for {wanted}'})"
        for split, left in by_split.items()
        for name in left
    ]
    stats.files, stats.skipped = chosen, sorted(skipped + others)
    return chosen


def _why_skipped(name: str, format_: str) -> str | None:
    """Return why a file is not read; None if it is."""
    last = name.rsplit("/", 1)[-1].lower()
    if is_hidden(last):
        return "hidden"
    if ending(last) in COMPRESSED:
        last = last.removesuffix(ending(last))
    if last.split(".")[0] in _ABOUT:
        return "about the data"
    if not last.endswith(_SUFFIXES[format_]):
        return f"not {format_}"
    return None


def split_from_name(name: str) -> str | None:
    """Return the split that a file's path names: "train", "validation", "test", or None.

    The first or last word of the file's name counts (``train-00000-of-00002.jsonl``, ``reviews_test.csv``),
    then the nearest folder's name (``test/rows.jsonl``).
    """
    *folders, file = name.lower().split("/")
    words = [word for word in re.split(r"[^a-z]+", file.split(".")[0]) if word]
    for word in (*words[:1], *words[-1:], *reversed(folders)):
        if word in _SPLIT_WORDS:
            return _SPLIT_WORDS[word]
    return None


def _short(name: str) -> str:
    name = clean_text(name)  # file names need not be UTF-8
    return name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}..."


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden."""
    return name.startswith((".", "_"))


def ending(name: str) -> str:
    """Return a name's ending in lower case, with its dot."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot >= 0 else ""
