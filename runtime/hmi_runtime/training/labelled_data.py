"""Labelled rows: read from where the user keeps them and checked, before anything is trained."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from hmi_api.errors import InvalidInput
from hmi_api.internal.storable import text_problem
from hmi_api.resources.common import DataSource
from hmi_api.resources.task_adapter import TaskType
from hmi_api.tag_schemes import OUTSIDE, TagScheme, scheme_of, scheme_or_plain
from hmi_runtime.training.data_reader import Row, field_value, read_rows, text_value, words_value
from hmi_runtime.training.source_files import DataUse, SourceStats
from hmi_runtime.training.token_dataset import hash_fraction

MOST_LABELLED_CHARACTERS = 1 << 30
"""Of all rows of a source together: they are held in memory."""
LONGEST_LABEL = 256
MOST_LABELS = 10_000
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
    """Rows of a token task: one tag a word, in one scheme."""

    words: Sequence[Sequence[str]]
    tags: Sequence[Sequence[str]]
    scheme: TagScheme

    @classmethod
    def of(cls, words: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> "TaggedRows":
        """Return rows in the scheme that their tags follow, ``Plain`` where they follow none."""
        return cls(words, tags, scheme_or_plain({tag for row in tags for tag in row}, tags))

    def __len__(self) -> int:
        return len(self.words)

    def take(self, numbers: Iterable[int]) -> Self:
        """Return those rows."""
        chosen = list(numbers)
        return replace(self, words=[self.words[n] for n in chosen], tags=[self.tags[n] for n in chosen])

    def inputs(self) -> Sequence[str]:
        """What tells one row's input from another's."""
        return [" ".join(words) for words in self.words]

    def answers(self) -> Sequence[Sequence[str]]:
        """The tags of every row."""
        return self.tags


Rows = LabelledRows | TaggedRows


def read_labelled(source: DataSource, task: TaskType, reading: SourceStats | None = None) -> Rows:
    """Read the rows of a task; ``reading`` says what for (training, when absent) and is told what was read.

    Raises ``InvalidInput``: CorpusEmpty, CorpusTooLarge, FieldMissing, RowMalformed, TagsMismatch,
    TaskUnsupported, and what ``read_rows`` raises.
    """
    reading = reading or SourceStats(DataUse.TRAIN)
    if task is TaskType.SEQUENCE_CLASSIFICATION:
        rows: Rows = _read_texts(source, reading)
    elif task is TaskType.TOKEN_CLASSIFICATION:
        rows = _read_tagged(source, reading)
    else:
        raise InvalidInput(
            "TaskUnsupported",
            f"{task.value} is not trained yet; use SequenceClassification or TokenClassification.",
        )
    if not len(rows):
        raise InvalidInput("CorpusEmpty", f"{source.uri} has no rows; give at least one a label.")
    return rows


class _Size:
    """Adds up what is held in memory."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._characters = 0

    def add(self, characters: int) -> None:
        self._characters += characters
        if self._characters > MOST_LABELLED_CHARACTERS:
            raise InvalidInput(
                "CorpusTooLarge",
                f"{self._uri} has more than {MOST_LABELLED_CHARACTERS >> 20} Mi characters of labelled text; "
                "give fewer rows, and put the others into data.unlabelled or the Domain's corpus.",
            )


def _read_texts(source: DataSource, reading: SourceStats) -> LabelledRows:
    texts, labels = [], []
    name = "text" if source.format == "Text" else source.text_field
    size = _Size(source.uri)
    for row in read_rows(source, reading):
        text = text_value(row, name)
        if not text.strip():
            raise InvalidInput("RowMalformed", f"{row.place}: the text is empty; remove the row.")
        label = parse_label(
            field_value(row, source.label_field), f"{row.place}: field {source.label_field!r}"
        )
        size.add(len(text) + len(label))
        texts.append(text)
        labels.append(label)
        reading.labels[label] += 1
    return LabelledRows(texts, labels)


def _read_tagged(source: DataSource, reading: SourceStats) -> TaggedRows:
    words, tags = [], []
    size = _Size(source.uri)
    for row in read_rows(source, reading):
        row_words = words_value(row, source.tokens_field)
        row_tags = _tags_of(row, source.tags_field)
        if len(row_words) != len(row_tags):
            raise InvalidInput(
                "TagsMismatch",
                f"{row.place} has {len(row_words)} words and {len(row_tags)} tags; give one tag a word.",
            )
        if row_words:
            size.add(sum(map(len, row_words)) + len(row_words))
            words.append(row_words)
            tags.append(row_tags)
            reading.labels.update(row_tags)
    return TaggedRows.of(words, tags)


def _tags_of(row: Row, name: str) -> list[str]:
    value = field_value(row, name)
    if isinstance(value, list) and value and all(isinstance(tag, int) for tag in value):
        raise InvalidInput(
            "RowMalformed",
            f"{row.place}: field {name!r} has whole numbers for tags, which do not say where an entity "
            "begins; "
            "write their names, such as B-PER (a Hugging Face data set has them in "
            f"features[{name!r}].feature.names).",
        )
    tags = words_value(row, name)
    for tag in set(tags):
        parse_label(tag, f"{row.place}: a tag of field {name!r}")
    return tags


def parse_label(value: object, place: str) -> str:
    """Return a label as text: a boolean is ``true`` or ``false``, and 1.0 is the whole number 1.

    Raises ``InvalidInput`` RowMalformed at ``place`` for anything else that is no name of a class, and
    LabelMalformed for a text that cannot be stored or is too long.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and len(text := str(value)) <= LONGEST_LABEL:
        return text
    if value is None or value == "":
        raise InvalidInput("RowMalformed", f"{place} has no label; remove the row, or give it one.")
    if isinstance(value, float):
        raise InvalidInput(
            "RowMalformed",
            f"{place} is a number with a fraction, which names no class; write a class, such as low or high.",
        )
    if not isinstance(value, str):
        raise InvalidInput(
            "RowMalformed", f"{place} is no label; make it a string, a whole number, true or false."
        )
    why = label_problem(value)
    if why is not None:
        raise InvalidInput("LabelMalformed", f"{place} {why}; write another label.")
    return value


def label_problem(label: str) -> str | None:
    """Return why a text cannot be a label, for lack of which it could not be stored or sent; None for one."""
    if len(label) > LONGEST_LABEL:
        return f"has a label of more than {LONGEST_LABEL} characters"
    problem = text_problem(label)
    return f"has the label {label!r}, which must {problem}" if problem else None


def label_names(rows: Rows, declared: Sequence[str]) -> tuple[str, ...]:
    """Return the labels of a task in the order of its scores.

    Those ``declared``; from the rows when none are: tags with ``O`` first, numbers by their value, others by
    the alphabet. Raises ``InvalidInput`` OneLabelOnly, LabelUnknown, LabelsRepeated, LabelMalformed,
    TooManyLabels, and TagMalformed for tags that follow no scheme.
    """
    _check_declared(declared)
    seen = {label for answers in rows.answers() for label in answers}
    for label in sorted(seen):
        if why := label_problem(label):
            raise InvalidInput("LabelMalformed", f"A row {why}; correct its rows.")
    if isinstance(rows, TaggedRows):
        scheme_of({*seen, *declared})
    if len(seen) < 2:
        raise InvalidInput(
            "OneLabelOnly",
            f"Every training row has the label {next(iter(seen), '')!r}; there is nothing to tell apart. "
            "Give rows of at least two labels.",
        )
    if declared:
        check_labels_known(rows, declared)
        return tuple(declared)
    if len(seen) > MOST_LABELS:
        raise InvalidInput(
            "TooManyLabels",
            f"The rows have {len(seen)} different labels, and a task at most {MOST_LABELS}; "
            "is the label's field one with free text?",
        )
    numbers = {label: number for label in seen if (number := _number(label)) is not None}
    if len(numbers) == len(seen):
        return tuple(sorted(seen, key=lambda label: (numbers[label], label)))
    return tuple(sorted(seen, key=lambda label: (label != OUTSIDE, label)))


def _check_declared(declared: Sequence[str]) -> None:
    repeated = sorted(label for label, count in Counter(declared).items() if count > 1)
    if repeated:
        raise InvalidInput(
            "LabelsRepeated",
            f"task.labels names {', '.join(repeated[:_NAMED_AT_MOST])} more than once; name each label once.",
        )
    for label in declared:
        why = label_problem(label)
        if why is not None or not label:
            raise InvalidInput("LabelMalformed", f"task.labels {why or 'has an empty label'}; correct it.")


def _number(label: str) -> float | None:
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def check_labels_known(rows: Rows, labels: Sequence[str]) -> None:
    """Raise ``InvalidInput`` LabelUnknown when a row has a label that is not among ``labels``."""
    seen = {label for answers in rows.answers() for label in answers}
    unknown = seen - set(labels)
    if not unknown:
        return
    named = ", ".join(sorted(unknown)[:_NAMED_AT_MOST])
    cure = "Add them to task.labels, or correct the rows."
    if not seen & set(labels):
        cure = (
            f"None of the rows has a label that task.labels names ({', '.join(labels[:_NAMED_AT_MOST])}): "
            "write "
            "the same names in both, or leave task.labels out to take those of the rows."
        )
    raise InvalidInput("LabelUnknown", f"Rows have labels that the task does not: {named}. {cure}")


VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class TrainValidationSplit:
    """Rows to learn from, and rows kept away from that."""

    train: Rows
    validation: Rows


@dataclass(frozen=True)
class _Group:
    """All rows of one text: they stay together, so that what is held out was never seen in training."""

    numbers: tuple[int, ...]
    labels: frozenset[str]
    fraction: float
    """A number in [0, 1) that depends on the text alone."""
    text: str


def train_validation_split(rows: Rows, share: float = VALIDATION_SHARE) -> TrainValidationSplit:
    """Keep ``share`` of the texts away, at least one, the same ones whatever order the rows come in.

    Stratified: of each label as large a share as of all. A row of several labels, as tags are, counts for the
    rarest of them. No label loses its only text: training sees every label that the rows have. Raises
    ``InvalidInput`` TooFewRows when no text can be held out so.
    """
    groups = _groups(rows)
    left = Counter(label for group in groups for label in group.labels)  # texts that training still has
    strata: dict[str, list[_Group]] = defaultdict(list)
    for group in groups:
        strata[min(group.labels, key=lambda label: (left[label], label))].append(group)
    wanted = _shares({label: len(members) for label, members in strata.items()}, share)
    held: set[int] = set()

    def keep(group: _Group) -> bool:
        may = all(left[label] > 1 for label in group.labels)
        if may:
            left.subtract(group.labels)
            held.update(group.numbers)
        return may

    for label in sorted(strata):
        for group in strata[label]:
            if wanted[label] and keep(group):
                wanted[label] -= 1
    if not held and not any(keep(group) for group in groups):  # strata that were to give could not
        raise InvalidInput(
            "TooFewRows",
            "No row can be held out to choose and judge by: each label has one text only. Give at least two "
            "different texts of a label; some ten of each are better.",
        )
    return TrainValidationSplit(
        train=rows.take(number for number in range(len(rows)) if number not in held),
        validation=rows.take(sorted(held)),
    )


def _groups(rows: Rows) -> list[_Group]:
    """Return the rows by text, in an order that depends on the texts alone."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for number, text in enumerate(rows.inputs()):
        numbers[text].append(number)
    answers = rows.answers()
    groups = [
        _Group(
            tuple(members),
            frozenset(label for number in members for label in answers[number]),
            hash_fraction(text),
            text,
        )
        for text, members in numbers.items()
    ]
    return sorted(groups, key=lambda group: (group.fraction, group.text))


def _shares(sizes: Mapping[str, int], share: float) -> dict[str, int]:
    """Divide ``share`` of the whole, at least one, among strata by size; the largest remainders get what is
    left.

    No stratum is taken whole.
    """
    total = max(1, round(sum(sizes.values()) * share))
    given = {label: int(size * share) for label, size in sizes.items()}
    order = sorted(sizes, key=lambda label: (given[label] - sizes[label] * share, -sizes[label], label))
    for label in order:
        if sum(given.values()) < total and given[label] < sizes[label] - 1:
            given[label] += 1
    return given
