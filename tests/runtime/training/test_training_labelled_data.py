"""Labels are checked and ordered, and rows are held out by label, before training."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmi_api.errors import InvalidInput
from hmi_api.resources.common import DataSource
from hmi_api.resources.task_adapter import TaskType
from hmi_api.tag_schemes import TagScheme
from hmi_runtime.training.file_selection import DataUse, SourceStats
from hmi_runtime.training.labelled_data import (
    LabelledRows,
    TaggedRows,
    label_names,
    read_labelled,
    train_validation_split,
)


def write(path: Path, rows: list[dict[str, object]]) -> DataSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSource(uri=str(path))


def refused(rows: LabelledRows | TaggedRows, declared: list[str]) -> InvalidInput:
    with pytest.raises(InvalidInput) as raised:
        label_names(rows, declared)
    return raised.value


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([True, False, True], ("false", "true")),
        ([10, 9, 1], ("1", "9", "10")),
        ([1.0, 2, 10.0], ("1", "2", "10")),
        (["0.5", "-1", "10"], ("-1", "0.5", "10")),
        (["b", "10", "9"], ("10", "9", "b")),
        (["nan", "2"], ("2", "nan")),
    ],
)
def test_labels_become_text_and_numbers_are_ordered_by_value(
    labels: list[object], expected: tuple[str, ...], tmp_path: Path
) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": "a", "label": label} for label in labels])
    rows = read_labelled(source, TaskType.SEQUENCE_CLASSIFICATION)
    assert label_names(rows, []) == expected


def test_a_number_with_a_fraction_is_no_label(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": "a", "label": 0.37}])
    with pytest.raises(InvalidInput, match=r"line 1.*fraction.*write a class"):
        read_labelled(source, TaskType.SEQUENCE_CLASSIFICATION)


def test_the_error_of_numeric_tags_says_where_their_names_are(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b"], "ner_tags": [0, 3]}]
    source = write(tmp_path / "a.jsonl", rows).model_copy(update={"tags_field": "ner_tags"})
    with pytest.raises(InvalidInput, match=r"line 1.*B-PER.*features\['ner_tags'\]\.feature\.names"):
        read_labelled(source, TaskType.TOKEN_CLASSIFICATION)


def test_the_error_differs_if_no_row_has_a_declared_label() -> None:
    numbers = LabelledRows(["a", "b"], ["0", "1"])
    assert "Add them" not in refused(numbers, ["no", "yes"]).message
    assert "the same names in both" in refused(numbers, ["no", "yes"]).message
    one_more = LabelledRows(["a", "b", "c"], ["no", "yes", "maybe"])
    assert "Add them to task.labels" in refused(one_more, ["no", "yes"]).message


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        (["a", "b", "a"], "LabelsRepeated"),
        (["a", "b", "c\0"], "LabelMalformed"),
        (["a", "b", "\ud800"], "LabelMalformed"),
        (["a", "b", ""], "LabelMalformed"),
    ],
)
def test_declared_labels_are_checked_before_training(declared: list[str], reason: str) -> None:
    assert refused(LabelledRows(["x", "y"], ["a", "b"]), declared).reason == reason


@pytest.mark.parametrize("tags", [["B-", "O"], ["foo", "O"], ["B-PER", "foo"]])
def test_malformed_tags_are_refused_before_training(tags: list[str]) -> None:
    error = refused(TaggedRows.of([["a", "b"]], [tags]), [])
    assert error.reason == "TagMalformed"


def test_a_malformed_tag_among_the_declared_labels_is_refused_too() -> None:
    rows = TaggedRows.of([["a", "b"]], [["B-P", "O"]])
    assert refused(rows, ["O", "B-P", "I-"]).reason == "TagMalformed"


def test_parts_of_speech_are_labels_of_words() -> None:
    rows = TaggedRows.of([["a", "b"]], [["NOUN", "VERB"]])
    assert label_names(rows, []) == ("NOUN", "VERB")
    assert rows.scheme is TagScheme.PLAIN


def test_more_labels_than_a_task_can_have_are_refused() -> None:
    texts = [str(number) for number in range(10_001)]
    assert refused(LabelledRows(texts, texts), []).reason == "TooManyLabels"


def labelled(counts: dict[str, int]) -> LabelledRows:
    rows = [(f"text {n} of {label}", label) for label, count in counts.items() for n in range(count)]
    return LabelledRows([text for text, _ in rows], [label for _, label in rows])


def test_held_out_rows_are_a_tenth_of_each_label() -> None:
    parts = train_validation_split(labelled({"a": 100, "b": 50, "c": 30}))
    assert Counter(parts.validation.labels) == {"a": 10, "b": 5, "c": 3}


def test_many_small_labels_give_a_tenth_of_all_rows_together() -> None:
    parts = train_validation_split(labelled({f"label {n}": 4 for n in range(50)}))
    assert len(parts.validation) == 20
    assert max(Counter(parts.validation.labels).values()) == 1


def test_a_label_never_loses_its_only_row() -> None:
    parts = train_validation_split(labelled({"common": 30, "once": 1, "twice": 2}))
    assert "once" in parts.train.labels
    assert "once" not in parts.validation.labels
    assert "twice" in parts.train.labels


def test_two_rows_of_two_labels_cannot_be_held_out() -> None:
    with pytest.raises(InvalidInput) as raised:
        train_validation_split(labelled({"a": 1, "b": 1}))
    assert raised.value.reason == "TooFewRows"
    assert "at least two different texts of a label" in raised.value.message


def test_rows_of_one_text_stay_together_and_every_label_stays_in_training() -> None:
    rows = LabelledRows(["x", "x", "y", "z", "w"], ["a", "b", "a", "a", "a"])
    parts = train_validation_split(rows, 0.9)
    assert "b" in parts.train.labels
    assert not set(parts.train.texts) & set(parts.validation.texts)


def test_rare_tags_are_held_out_as_often_as_common_ones() -> None:
    words = [[f"word{n}", "rest"] for n in range(100)]
    tags = [["B-RARE" if n < 10 else "B-COMMON", "O"] for n in range(100)]
    parts = train_validation_split(TaggedRows.of(words, tags))
    held_out = Counter(row[0] for row in parts.validation.answers())
    assert held_out == {"B-RARE": 1, "B-COMMON": 9}


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abc")), min_size=2, max_size=60),
    st.randoms(use_true_random=False),
)
def test_every_label_stays_in_training_and_order_does_not_matter(rows: list[tuple[int, str]], random) -> None:
    texts = LabelledRows([str(text) for text, _ in rows], [label for _, label in rows])
    try:
        parts = train_validation_split(texts)
    except InvalidInput:
        several = max(Counter(label for _, label in set(rows)).values()) > 1
        assert not several or len(set(texts.texts)) < 3
        return
    assert set(parts.train.labels) == set(texts.labels)
    assert len(parts.train) + len(parts.validation) == len(rows)
    shuffled = list(rows)
    random.shuffle(shuffled)
    again = train_validation_split(
        LabelledRows([str(text) for text, _ in shuffled], [label for _, label in shuffled])
    )
    assert set(again.validation.texts) == set(parts.validation.texts)


def test_labels_are_counted_as_they_are_read(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": "a", "label": label} for label in "xxy"])
    reading = SourceStats(DataUse.TRAIN)
    read_labelled(source, TaskType.SEQUENCE_CLASSIFICATION, reading)
    report = reading.report()
    assert (report.rows, report.files, report.labels) == (3, ["a.jsonl"], {"x": 2, "y": 1})
    assert report.sentence() == "train: 3 rows of 1 files (a.jsonl); 2 labels (x 2, y 1)."
