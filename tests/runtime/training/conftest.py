"""A tiny random base model with a word-level tokenizer, and rows about bicycle repairs."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support_encoders import SPECIAL_TOKENS, save_base_model
from support_runs import Runs
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from hmi_runtime.models.source import BaseModel, load_base

VOCABULARY = """
the a chain brake wheel saddle slips squeals wobbles creaks is on in my when and after rain hill road
bike shop please fix order new red blue front rear cable pump tyre flat again today
"""
WORDS = VOCABULARY.split()

WriteLines = Callable[[str, list[dict[str, Any]]], Path]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: the same bits on every machine, and no competition for cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of four layers; BERT by default."""
    folder = tmp_path_factory.mktemp("base")
    vocabulary = {word: index for index, word in enumerate([*SPECIAL_TOKENS, *WORDS])}
    tokenizer = BackendTokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    torch.manual_seed(7)
    family = getattr(request, "param", "bert")
    save_base_model(folder, family, tokenizer, hidden_size=16, intermediate_size=32, initializer_range=0.3)
    return folder


@pytest.fixture(scope="session")
def base(base_folder: Path) -> BaseModel:
    return load_base(str(base_folder))


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Sixty sentences over the vocabulary, all different."""
    generator = torch.Generator().manual_seed(11)
    made = []
    for number in range(60):
        length = 3 + number % 9
        picks = torch.randint(len(WORDS), (length,), generator=generator).tolist()
        made.append(" ".join(WORDS[pick] for pick in picks))
    return made


@pytest.fixture
def write_lines(tmp_path: Path) -> WriteLines:
    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def labelled_rows(sentences: list[str]) -> list[dict[str, Any]]:
    """Rows labelled by their last word, front or rear."""
    return [
        {"text": f"{sentence} {side}", "label": side} for sentence in sentences for side in ("front", "rear")
    ]


@pytest.fixture
def tagged_rows(sentences: list[str]) -> list[dict[str, Any]]:
    """Rows in which every colour and the last word, bike, is an entity."""
    rows = []
    for sentence in sentences:
        words = [*sentence.split(), "red", "bike"]
        tags = ["B-COLOUR" if word in ("red", "blue") else "O" for word in words]
        rows.append({"tokens": words, "tags": [*tags[:-1], "B-BIKE"]})
    return rows


@pytest.fixture
def runs(tmp_path: Path, base_folder: Path, sentences: list[str], write_lines: Any) -> Runs:
    corpus = write_lines("corpus.jsonl", [{"text": sentence} for sentence in sentences])
    return Runs(tmp_path, base_folder, corpus)


@pytest.fixture
def sides(write_lines: Any, labelled_rows: list[dict[str, Any]]) -> Path:
    path: Path = write_lines("sides.jsonl", labelled_rows)
    return path
