"""Rows are read from every format and address; errors name file and line."""

import bz2
import gzip
import lzma
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmi_api.errors import InvalidInput
from hmi_api.resources.common import DataSource
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.models.source import BaseModel
from hmi_runtime.training.data_reader import read_texts
from hmi_runtime.training.labelled_data import (
    LabelledRows,
    label_names,
    read_labelled,
    train_validation_split,
)
from hmi_runtime.training.token_dataset import TokenDataset


def texts(path: Path | str, **more: str) -> list[str]:
    return list(read_texts([DataSource(uri=str(path), **more)]))


def refused(path: Path | str, **more: str) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        texts(path, **more)
    return caught.value


def test_json_lines_text_and_csv_give_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\ufeff{"text": "one"}\n\n{"text": "two, or so"}\n', encoding="utf-8")
    (tmp_path / "a.txt").write_text("one\n\ntwo, or so\n")
    (tmp_path / "a.csv").write_text('id,text\n1,one\n2,"two, or so"\n')
    for name, format_ in (("a.jsonl", "JSONLines"), ("a.txt", "Text"), ("a.csv", "CSV")):
        assert texts(tmp_path / name, format=format_) == ["one", "two, or so"]


def test_a_folder_is_read_in_order_and_compressed_files_too(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("two\n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n"))
    (tmp_path / "notes.pdf").write_bytes(b"\x00\x01")
    (tmp_path / ".hidden.txt").write_text("never\n")
    assert texts(tmp_path, format="Text") == ["one", "two"]
    assert texts(f"file://{tmp_path}", format="Text") == ["one", "two"]


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a \\ud83d\\ude00 of a pair"}\n')
    assert texts(tmp_path / "a.jsonl") == ["a \U0001f600 of a pair"]


def test_a_list_of_words_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"tokens": ["one", "two"]}\n')
    assert texts(tmp_path / "a.jsonl", text_field="tokens") == ["one two"]


def test_the_error_of_a_missing_field_names_the_fields(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one", "id": 1}\n')
    error = refused(tmp_path / "a.jsonl")
    assert error.reason == "FieldMissing"
    assert "'text'" in error.message
    assert "body, id" in error.message


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz"])
def test_the_error_of_a_damaged_compressed_file_names_it(ending: str, tmp_path: Path) -> None:
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[ending]
    whole = pack("".join(f"a line of text, number {n * n * n}\n" for n in range(400)).encode())
    for content in (whole[: len(whole) // 2], b"this was never compressed\n"):
        path = tmp_path / f"rows.txt.{ending}"
        path.write_bytes(content)
        error = refused(path, format="Text")
        assert error.reason == "CorpusNotText"
        assert path.name in error.message


@pytest.mark.parametrize(
    ("content", "format_", "reason", "place"),
    [
        (b"", "JSONLines", "CorpusEmpty", "rows"),
        (b'{"text": " "}\n', "JSONLines", "CorpusEmpty", "rows"),
        (b'{"text": "one"}\n{"text": \n', "JSONLines", "RowMalformed", "line 2"),
        (b'["one"]\n', "JSONLines", "RowMalformed", "line 1"),
        (b'{"text": 3}\n', "JSONLines", "RowMalformed", "line 1"),
        (b'{"text": "half \\ud800 a pair"}\n', "JSONLines", "RowMalformed", "line 1"),
        (b"one\n\xff\xfe\n", "Text", "CorpusNotText", "line 2"),
        (b"one\x00two\n", "Text", "CorpusNotText", "line 1"),
        (pickle.dumps({"text": "one"}), "JSONLines", "CorpusNotText", "line 1"),
        (b"text,label\none\n", "CSV", "RowMalformed", "data"),
        (b"text\n\xff\n", "CSV", "CorpusNotText", "data"),
    ],
)
def test_bad_rows_have_a_reason_and_a_place(
    content: bytes, format_: str, reason: str, place: str, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    path.write_bytes(content)
    error = refused(path, format=format_)
    assert error.reason == reason
    assert place in error.message or path.name in error.message


@pytest.mark.parametrize("uri", ["nowhere/at/all.jsonl", "nosuchscheme://bucket/a.jsonl"])
def test_an_address_without_a_file_is_not_found(uri: str, tmp_path: Path) -> None:
    assert refused(tmp_path / uri if "://" not in uri else uri).reason == "CorpusNotFound"


def test_a_folder_without_files_of_the_format_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\none\n")
    error = refused(tmp_path)
    assert error.reason == "CorpusEmpty"
    assert ".jsonl" in error.message


def test_a_token_dataset_returns_its_rows_and_holds_some_out(
    base: BaseModel, sentences: list[str], tmp_path: Path
) -> None:
    dataset = TokenDataset.write(tmp_path / "dataset", sentences, base.tokenizer, 8)
    again = TokenDataset.open(tmp_path / "dataset")
    assert len(dataset) == len(again) == len(sentences)
    for number, encoding in enumerate(base.tokenizer.encode(sentences, 8)):
        assert again.row(number).tolist() == encoding.ids
    held_out, kept = set(again.held_out_rows.tolist()), set(again.training_rows.tolist())
    assert held_out
    assert kept
    assert not held_out & kept
    assert held_out | kept == set(range(len(sentences)))
    ids, mask = again.batch([0, 8], base.config.pad_id)
    assert ids[0][mask[0]].tolist() == again.row(0).tolist()


def test_one_row_is_a_corpus_too(base: BaseModel, tmp_path: Path) -> None:
    dataset = TokenDataset.write(tmp_path / "dataset", ["the chain slips"], base.tokenizer, 8)
    assert dataset.training_rows.tolist() == dataset.held_out_rows.tolist() == [0]


@given(st.lists(st.text(max_size=4), min_size=2, max_size=40).filter(lambda rows: len(set(rows)) > 1))
def test_held_out_texts_are_never_trained_on(rows: list[str]) -> None:
    parts = train_validation_split(LabelledRows(rows, ["x"] * len(rows)))
    assert isinstance(parts.train, LabelledRows)
    assert isinstance(parts.validation, LabelledRows)
    assert not set(parts.train.texts) & set(parts.validation.texts)
    assert len(parts.train)
    assert len(parts.validation)
    assert len(parts.train) + len(parts.validation) == len(rows)


@pytest.mark.parametrize(
    ("rows", "task", "reason"),
    [
        ('{"text": "a", "label": null}', TaskType.SEQUENCE_CLASSIFICATION, "RowMalformed"),
        ('{"text": "a", "label": ["x"]}', TaskType.SEQUENCE_CLASSIFICATION, "RowMalformed"),
        ('{"text": "a", "label": "x\\u0000y"}', TaskType.SEQUENCE_CLASSIFICATION, "LabelMalformed"),
        ('{"text": "a", "label": "\\ud800"}', TaskType.SEQUENCE_CLASSIFICATION, "RowMalformed"),
        (f'{{"text": "a", "label": "{"x" * 300}"}}', TaskType.SEQUENCE_CLASSIFICATION, "LabelMalformed"),
        ('{"tokens": ["a"], "tags": ["B-\\u0000"]}', TaskType.TOKEN_CLASSIFICATION, "LabelMalformed"),
        ('{"tokens": ["a", "b"], "tags": ["O"]}', TaskType.TOKEN_CLASSIFICATION, "TagsMismatch"),
        ('{"tokens": [1], "tags": ["O"]}', TaskType.TOKEN_CLASSIFICATION, "RowMalformed"),
        ('{"text": "a"}', TaskType.SEQUENCE_CLASSIFICATION, "FieldMissing"),
        ('{"text": "", "label": "x"}', TaskType.SEQUENCE_CLASSIFICATION, "RowMalformed"),
        ('{"text": "a", "label": 1.5}', TaskType.SEQUENCE_CLASSIFICATION, "RowMalformed"),
        ("", TaskType.SEQUENCE_CLASSIFICATION, "CorpusEmpty"),
        ('{"text": "a", "label": "x"}', TaskType.TEXT_GENERATION, "TaskUnsupported"),
    ],
)
def test_bad_labelled_rows_have_a_reason(rows: str, task: TaskType, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(rows + "\n")
    with pytest.raises(InvalidInput) as caught:
        read_labelled(DataSource(uri=str(tmp_path / "a.jsonl")), task)
    assert caught.value.reason == reason


def test_labels_come_from_the_rows_or_are_checked_against_them() -> None:
    rows = LabelledRows(["a", "b", "c"], ["z", "x", "z"])
    assert label_names(rows, []) == ("x", "z")
    assert label_names(rows, ["z", "y", "x"]) == ("z", "y", "x")
    for wrong, declared, reason in (
        (LabelledRows(["a", "b"], ["x", "x"]), [], "OneLabelOnly"),
        (rows, ["x", "y"], "LabelUnknown"),
    ):
        with pytest.raises(InvalidInput) as caught:
            label_names(wrong, declared)
        assert caught.value.reason == reason


def test_whole_numbers_are_labels(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\none,0\ntwo,1\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one", "label": 0}\n{"text": "two", "label": 1}\n')
    for name, format_ in (("a.csv", "CSV"), ("a.jsonl", "JSONLines")):
        source = DataSource(uri=str(tmp_path / name), format=format_)
        rows = read_labelled(source, TaskType.SEQUENCE_CLASSIFICATION)
        assert isinstance(rows, LabelledRows)
        assert list(rows.labels) == ["0", "1"]


def test_lengths_of_a_token_dataset_match_its_rows(
    base: BaseModel, sentences: list[str], tmp_path: Path
) -> None:
    dataset = TokenDataset.write(tmp_path / "dataset", sentences, base.tokenizer, 32)
    assert dataset.lengths.tolist() == [len(dataset.row(number)) for number in range(len(dataset))]
    batches = list(dataset.batches(np.arange(len(dataset)), 7, base.config.pad_id))
    assert sum(int(mask.sum()) for _, mask in batches) == len(dataset.tokens)
