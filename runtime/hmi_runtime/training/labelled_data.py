"""Labelled rows: read and checked before training, and split into training and validation rows."""

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
from hmi_runtime.training.data_reader import Row, field_value, read_rows, text_of, words_value
from hmi_runtime.training.file_selection import DataUse, SourceStats
from hmi_runtime.training.token_dataset import hash_fraction

MOST_LABELLED_CHARACTERS = 1 << 30
"""Most characters of a source's rows together, since they are kept in memory."""
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
        """Return the rows of these numbers."""
        chosen = list(numbers)
        return type(self)([self.texts[n] for n in chosen], [self.labels[n] for n in chosen])

    def inputs(self) -> Sequence[str]:
        """Each row's text."""
        return self.texts

    def answers(self) -> Sequence[Sequence[str]]:
        """Each row's labels."""
        return [[label] for label in self.labels]


@dataclass(frozen=True)
class TaggedRows:
    """Rows of a token task: one tag a word, in one scheme."""

    words: Sequence[Sequence[str]]
    tags: Sequence[Sequence[str]]
    scheme: TagScheme

    @classmethod
    def of(cls, words: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> "TaggedRows":
        """Return rows in the scheme that their tags follow; ``Plain`` if they follow none."""
        return cls(words, tags, scheme_or_plain({tag for row in tags for tag in row}, tags))

    def __len__(self) -> int:
        return len(self.words)

    def take(self, numbers: Iterable[int]) -> Self:
        """Return the rows of these numbers."""
        chosen = list(numbers)
        return replace(self, words=[self.words[n] for n in chosen], tags=[self.tags[n] for n in chosen])

    def inputs(self) -> Sequence[str]:
        """Each row's words, joined by spaces."""
        return [" ".join(words) for words in self.words]

    def answers(self) -> Sequence[Sequence[str]]:
        """Each row's tags."""
        return self.tags


Rows = LabelledRows | TaggedRows


def read_labelled(source: DataSource, task: TaskType, stats: SourceStats | None = None) -> Rows:
    """Read the rows of a task. ``stats`` names their use (training if absent) and counts what was read.

    Raises ``InvalidInput``: CorpusEmpty, CorpusTooLarge, FieldMissing, RowMalformed, TagsMismatch,
    TaskUnsupported, and what ``read_rows`` raises.
    """
    stats = stats or SourceStats(DataUse.TRAIN)
    if task is TaskType.SEQUENCE_CLASSIFICATION:
        rows: Rows = _read_texts(source, stats)
    elif task is TaskType.TOKEN_CLASSIFICATION:
        rows = _read_tagged(source, stats)
    else:
        raise InvalidInput(
            "TaskUnsupported",
            f"{task.value} is not trained yet; use SequenceClassification or TokenClassification.",
        )
    if not len(rows):
        raise InvalidInput("CorpusEmpty", f"{source.uri} has no rows; give at least one a label.")
    return rows


def _check_size(characters: int, uri: str) -> None:
    if characters > MOST_LABELLED_CHARACTERS:
        raise InvalidInput(
            "CorpusTooLarge",
            f"{uri} has more than {MOST_LABELLED_CHARACTERS >> 20} Mi characters of labelled text; "
            "give fewer rows, and put the others into data.unlabelled or the Domain's corpus.",
        )


def _read_texts(source: DataSource, stats: SourceStats) -> LabelledRows:
    texts, labels = [], []
    size = 0
    for row in read_rows(source, stats):
        text = text_of(row, source)
        if not text.strip():
            raise InvalidInput("RowMalformed", f"{row.place}: the text is empty; remove the row.")
        label = parse_label(
            field_value(row, source.label_field), f"{row.place}: field {source.label_field!r}"
        )
        size += len(text) + len(label)
        _check_size(size, source.uri)
        texts.append(text)
        labels.append(label)
        stats.labels[label] += 1
    return LabelledRows(texts, labels)


def _read_tagged(source: DataSource, stats: SourceStats) -> TaggedRows:
    words, tags = [], []
    size = 0
    for row in read_rows(source, stats):
        row_words = words_value(row, source.tokens_field)
        row_tags = _tags_of(row, source.tags_field)
        if len(row_words) != len(row_tags):
            raise InvalidInput(
                "TagsMismatch",
                f"{row.place} has {len(row_words)} words and {len(row_tags)} tags; give one tag a word.",
            )
        if row_words:
            size += sum(map(len, row_words)) + len(row_words)
            _check_size(size, source.uri)
            words.append(row_words)
            tags.append(row_tags)
            stats.labels.update(row_tags)
    return TaggedRows.of(words, tags)


def _tags_of(row: Row, name: str) -> list[str]:
    value = field_value(row, name)
    if isinstance(value, list) and value and all(isinstance(tag, int) for tag in value):
        raise InvalidInput(
            "RowMalformed",
            f"{row.place}: field {name!r} has whole numbers for tags, which do not say where an entity "
            "begins; write their names, such as B-PER (a Hugging Face data set has them in "
            f"features[{name!r}].feature.names).",
        )
    tags = words_value(row, name)
    for tag in set(tags):
        parse_label(tag, f"{row.place}: a tag of field {name!r}")
    return tags


def parse_label(value: object, place: str) -> str:
    """Return a label as text: a boolean is ``true`` or ``false``, and 1.0 is the whole number 1.

    Raises ``InvalidInput`` RowMalformed at ``place`` for any other value that is no label, and LabelMalformed
    for a text that cannot be stored or is too long.
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
    """Return why a text cannot be stored or sent as a label; None if it can."""
    if len(label) > LONGEST_LABEL:
        return f"has a label of more than {LONGEST_LABEL} characters"
    problem = text_problem(label)
    return f"has the label {label!r}, which must {problem}" if problem else None


def labels_in(rows: Rows) -> set[str]:
    """Return the labels of all rows."""
    return {label for answers in rows.answers() for label in answers}


def label_names(rows: Rows, declared: Sequence[str]) -> tuple[str, ...]:
    """Return the labels of a task in the order of its scores.

    They are those ``declared``, or else those of the rows: tags with ``O`` first, numbers by their value,
    others by the alphabet. Raises ``InvalidInput`` OneLabelOnly, LabelUnknown, LabelsRepeated,
    LabelMalformed, TooManyLabels, and TagMalformed for tags that follow no scheme.
    """
    _check_declared(declared)
    seen = labels_in(rows)
    for label in sorted(seen):
        if why := label_problem(label):
            raise InvalidInput("LabelMalformed", f"A row {why}; correct it.")
    if isinstance(rows, TaggedRows):
        scheme_of({*seen, *declared})
    if len(seen) < 2:
        raise InvalidInput(
            "OneLabelOnly",
            f"Every training row has the label {next(iter(seen), '')!r}; give rows of at least two labels.",
        )
    if declared:
        check_labels_known(rows, declared)
        return tuple(declared)
    if len(seen) > MOST_LABELS:
        raise InvalidInput(
            "TooManyLabels",
            f"The rows have {len(seen)} different labels, and a task at most {MOST_LABELS}; "
            "is labelField a field of free text?",
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
    seen = labels_in(rows)
    unknown = seen - set(labels)
    if not unknown:
        return
    named = ", ".join(sorted(unknown)[:_NAMED_AT_MOST])
    cure = "Add them to task.labels, or correct the rows."
    if not seen & set(labels):
        cure = (
            f"None of the rows has a label that task.labels names ({', '.join(labels[:_NAMED_AT_MOST])}): "
            "write the same names in both, or leave task.labels out to take those of the rows."
        )
    raise InvalidInput("LabelUnknown", f"Rows have labels that the task does not: {named}. {cure}")


VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class TrainValidationSplit:
    """Training rows, and held-out rows."""

    train: Rows
    validation: Rows


@dataclass(frozen=True)
class _Group:
    """All rows of one text, which stay together, so that no held-out text occurs in training."""

    numbers: tuple[int, ...]
    labels: frozenset[str]
    fraction: float
    """A number in [0, 1) that depends on the text alone."""
    text: str


def train_validation_split(rows: Rows, share: float = VALIDATION_SHARE) -> TrainValidationSplit:
    """Hold out ``share`` of the texts, at least one; the same texts in whatever order the rows are.

    The split is stratified: each label has the same share of held-out texts. A row with several labels (tags)
    counts for the rarest of them. The only text of a label is never held out, so that training sees every
    label. Raises ``InvalidInput`` TooFewRows if no text can be held out.
    """
    groups = _groups(rows)
    left = Counter(label for group in groups for label in group.labels)  # texts that training still has
    strata: dict[str, list[_Group]] = defaultdict(list)
    for group in groups:
        strata[min(group.labels, key=lambda label: (left[label], label))].append(group)
    wanted = _shares({label: len(members) for label, members in strata.items()}, share)
    held_out: set[int] = set()

    def hold_out(group: _Group) -> bool:
        possible = all(left[label] > 1 for label in group.labels)
        if possible:
            left.subtract(group.labels)
            held_out.update(group.numbers)
        return possible

    for label in sorted(strata):
        for group in strata[label]:
            if wanted[label] and hold_out(group):
                wanted[label] -= 1
    if not held_out and not any(hold_out(group) for group in groups):  # no stratum could spare a text
        raise InvalidInput(
            "TooFewRows",
            "No row can be held out to choose the epoch by: each label has one text only. Give at least two "
            "different texts of a label; some ten of each are better.",
        )
    return TrainValidationSplit(
        train=rows.take(number for number in range(len(rows)) if number not in held_out),
        validation=rows.take(sorted(held_out)),
    )


def _groups(rows: Rows) -> list[_Group]:
    """Group the rows by text, in an order that depends on the texts alone."""
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
    """Divide ``share`` of the whole, at least one, among strata by size, by largest remainders.

    No stratum is taken whole.
    """
    total = max(1, round(sum(sizes.values()) * share))
    given = {label: int(size * share) for label, size in sizes.items()}
    order = sorted(sizes, key=lambda label: (given[label] - sizes[label] * share, -sizes[label], label))
    for label in order:
        if sum(given.values()) < total and given[label] < sizes[label] - 1:
            given[label] += 1
    return given
