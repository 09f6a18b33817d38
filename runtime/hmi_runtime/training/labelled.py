"""Labelled rows: read from where the user keeps them, checked, and split into training and held out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from hmi_api.common import DataSource
from hmi_api.errors import InvalidInput
from hmi_api.storable import text_problem
from hmi_api.task_adapter import TaskType
from hmi_runtime.training.corpus import Row, field, read_rows, text_of, words_of
from hmi_runtime.training.metrics import OUTSIDE
from hmi_runtime.training.spool import text_fraction

VALIDATION_SHARE = 0.1

_NAMED_AT_MOST = 20


@dataclass(frozen=True)
class LabelledRows:
    """Rows of a sequence task: one label a text."""

    texts: Sequence[str]
    labels: Sequence[str]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, numbers: Iterable[int]) -> Self:
        """Return those rows."""
        chosen = list(numbers)
        return type(self)([self.texts[n] for n in chosen], [self.labels[n] for n in chosen])

    def inputs(self) -> Sequence[str]:
        """What tells one row's input from another's."""
        return self.texts

    def answers(self) -> Sequence[Sequence[str]]:
        """The labels of every row."""
        return [[label] for label in self.labels]


@dataclass(frozen=True)
class TaggedRows:
    """Rows of a token task: one BIO tag a word."""

    words: Sequence[Sequence[str]]
    tags: Sequence[Sequence[str]]

    def __len__(self) -> int:
        return len(self.words)

    def take(self, numbers: Iterable[int]) -> Self:
        """Return those rows."""
        chosen = list(numbers)
        return type(self)([self.words[n] for n in chosen], [self.tags[n] for n in chosen])

    def inputs(self) -> Sequence[str]:
        """What tells one row's input from another's."""
        return [" ".join(words) for words in self.words]

    def answers(self) -> Sequence[Sequence[str]]:
        """The tags of every row."""
        return self.tags


Rows = LabelledRows | TaggedRows


def read_labelled(source: DataSource, task: TaskType) -> Rows:
    """Read the rows of a task.

    Raises ``InvalidInput``: CorpusEmpty, FieldMissing, RowMalformed, TagsMismatch, TaskUnsupported, and
    what ``read_rows`` raises.
    """
    if task is TaskType.SEQUENCE_CLASSIFICATION:
        rows: Rows = _read_texts(source)
    elif task is TaskType.TOKEN_CLASSIFICATION:
        rows = _read_tagged(source)
    else:
        raise InvalidInput(
            "TaskUnsupported",
            f"{task.value} is not trained yet; use SequenceClassification or TokenClassification.",
        )
    if not len(rows):
        raise InvalidInput("CorpusEmpty", f"{source.uri} has no rows; give at least one a label.")
    return rows


def _read_texts(source: DataSource) -> LabelledRows:
    texts, labels = [], []
    name = "text" if source.format == "Text" else source.text_field
    for row in read_rows(source):
        text = text_of(row, name)
        if not text.strip():
            raise InvalidInput("RowMalformed", f"{row.place}: the text is empty; remove the row.")
        texts.append(text)
        labels.append(_label(row, source.label_field))
    return LabelledRows(texts, labels)


def _read_tagged(source: DataSource) -> TaggedRows:
    words, tags = [], []
    for row in read_rows(source):
        row_words = words_of(row, source.tokens_field)
        row_tags = words_of(row, source.tags_field)
        if len(row_words) != len(row_tags):
            raise InvalidInput(
                "TagsMismatch",
                f"{row.place} has {len(row_words)} words and {len(row_tags)} tags; give one tag a word.",
            )
        if row_words:
            words.append(row_words)
            tags.append(row_tags)
    return TaggedRows(words, tags)


def _label(row: Row, name: str) -> str:
    value = field(row, name)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InvalidInput(
            "RowMalformed", f"{row.place}: field {name!r} is no label; make it a string or a whole number."
        )
    return str(value)


def label_names(rows: Rows, declared: Sequence[str]) -> tuple[str, ...]:
    """Return the labels of a task in the order of its scores.

    Those ``declared``; sorted from the rows when none are, for tags with ``O`` first. Raises
    ``InvalidInput`` LabelMalformed, OneLabelOnly, LabelUnknown.
    """
    seen = {label for answers in rows.answers() for label in answers}
    for label in sorted(seen):
        if problem := text_problem(label):
            raise InvalidInput("LabelMalformed", f"The label {label!r} must {problem}; correct its rows.")
    if len(seen) < 2:
        raise InvalidInput(
            "OneLabelOnly",
            f"Every training row has the label {next(iter(seen), '')!r}; there is nothing to tell apart. "
            "Give rows of at least two labels.",
        )
    if declared:
        check_known(rows, declared)
        return tuple(declared)
    return tuple(sorted(seen, key=lambda label: (label != OUTSIDE, label)))


def check_known(rows: Rows, labels: Sequence[str]) -> None:
    """Raise ``InvalidInput`` LabelUnknown when a row has a label that is not among ``labels``."""
    unknown = {label for answers in rows.answers() for label in answers} - set(labels)
    if unknown:
        named = ", ".join(sorted(unknown)[:_NAMED_AT_MOST])
        raise InvalidInput(
            "LabelUnknown", f"Rows have labels that the task does not: {named}. Add them to task.labels."
        )


@dataclass(frozen=True)
class HeldOut:
    """Rows to learn from, and rows kept away from that."""

    train: Rows
    validation: Rows


def hold_out(rows: Rows, share: float = VALIDATION_SHARE) -> HeldOut:
    """Keep ``share`` of the rows away, at least one, the same ones whatever order they come in.

    Rows of the same text stay together, so that what is held out was never seen in training. Raises
    ``InvalidInput`` TooFewRows when all rows have one text.
    """
    fractions = [text_fraction(key) for key in rows.inputs()]
    distinct = sorted(set(fractions))
    if len(distinct) < 2:
        raise InvalidInput(
            "TooFewRows", "All rows have the same text, so none can be held out; give more rows."
        )
    limit = distinct[max(0, round(len(distinct) * share) - 1)]
    return HeldOut(
        train=rows.take(number for number, fraction in enumerate(fractions) if fraction > limit),
        validation=rows.take(number for number, fraction in enumerate(fractions) if fraction <= limit),
    )
