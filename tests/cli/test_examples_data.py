"""The example data matches the program that writes it, and its test rows are in no other split."""

import json
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "demo"
TASKS = sorted(folder.name for folder in (EXAMPLES / "data").iterdir() if folder.name != "corpus")


def rows(task: str, split: str) -> list[dict[str, object]]:
    """Return the rows of a split."""
    return [
        json.loads(line) for line in (EXAMPLES / "data" / task / f"{split}.jsonl").read_text().splitlines()
    ]


def texts(task: str, split: str) -> set[str]:
    """Return the texts of a split."""
    return {str(row["text"]) if "text" in row else " ".join(row["tokens"]) for row in rows(task, split)}  # type: ignore[arg-type]


@pytest.mark.parametrize("task", TASKS)
def test_no_row_is_in_two_splits(task: str) -> None:
    train, validation, test = (texts(task, split) for split in ("train", "validation", "test"))
    assert not train & test
    assert not train & validation
    assert not validation & test


@pytest.mark.parametrize("task", TASKS)
def test_no_test_row_is_in_a_corpus(task: str) -> None:
    corpora = "\n".join(file.read_text() for file in (EXAMPLES / "data" / "corpus").iterdir()).splitlines()
    assert not texts(task, "test") & set(corpora)


@pytest.mark.parametrize("task", TASKS)
def test_every_label_of_the_test_split_is_trained(task: str) -> None:
    def labels(split: str) -> set[str]:
        return {str(label) for row in rows(task, split) for label in row.get("tags") or [row["label"]]}  # type: ignore[attr-defined]

    assert labels("test") <= labels("train")


def test_the_data_matches_the_program_that_writes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = runpy.run_path(str(EXAMPLES / "text" / "build.py"))
    monkeypatch.setitem(program["main"].__globals__, "OUT", tmp_path)
    program["main"]()
    written = {
        file.relative_to(tmp_path): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()
    }
    committed = {
        file.relative_to(EXAMPLES / "data"): file.read_bytes()
        for file in (EXAMPLES / "data").rglob("*")
        if file.is_file()
    }
    assert written == committed
