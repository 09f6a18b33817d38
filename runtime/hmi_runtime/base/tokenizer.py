"""Tokenising: text or words to ids, with the way back to characters and words."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from hmi_api.errors import InvalidInput


@dataclass(frozen=True)
class Encoding:
    """One tokenised text, special tokens included.

    ``offsets`` are character ranges in the text (of each word, for pre-split words); special tokens have
    (0, 0) and ``word_ids`` None. ``truncated`` says that tokens were cut off at the limit.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]
    truncated: bool

    def first_tokens(self) -> list[tuple[int, int]]:
        """Return the place of its first token and the number of each word that has a token, in order."""
        found, previous = [], None
        for place, word in enumerate(self.word_ids):
            if word is not None and word != previous:
                found.append((place, word))
            previous = word
        return found


class Tokenizer:
    """A checkpoint's own fast tokenizer, behind the few calls that HMI makes."""

    def __init__(self, folder: Path) -> None:
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, KeyError) as error:  # KeyError: of a config.json that lacks sizes
            raise InvalidInput(
                "BaseModelUnsupported", f"No tokenizer could be read from the base model's folder: {error}"
            ) from error
        if not self._tokenizer.is_fast:
            raise InvalidInput(
                "BaseModelUnsupported", "The base model has no fast tokenizer (tokenizer.json); add one."
            )
        # Truncation and padding are this class's own business, whatever tokenizer.json says.
        self._tokenizer.backend_tokenizer.no_truncation()
        self._tokenizer.backend_tokenizer.no_padding()
        self._backend = self._tokenizer.backend_tokenizer
        self._backend.encode_special_tokens = True

    @property
    def cls_id(self) -> int:
        """Id of the token that opens every text."""
        return self._special("cls_token_id")

    @property
    def sep_id(self) -> int:
        """Id of the token that closes every text."""
        return self._special("sep_token_id")

    @property
    def pad_id(self) -> int:
        """Id of padding."""
        return self._special("pad_token_id")

    def encode(self, texts: Sequence[str], max_length: int) -> list[Encoding]:
        """Tokenise texts, each cut to ``max_length`` tokens (special ones included)."""
        return [self._cut(e, max_length) for e in self._backend.encode_batch(list(texts))]

    def encode_words(self, rows: Sequence[Sequence[str]], max_length: int) -> list[Encoding]:
        """Tokenise rows of words; ``word_ids`` tell which word each token came from."""
        batch = [list(words) for words in rows]
        return [self._cut(e, max_length) for e in self._backend.encode_batch(batch, is_pretokenized=True)]

    def _cut(self, encoding: Any, max_length: int) -> Encoding:
        ids, offsets = list(encoding.ids), list(encoding.offsets)
        words = [
            None if special else word
            for word, special in zip(encoding.word_ids, encoding.special_tokens_mask, strict=True)
        ]
        truncated = len(ids) > max_length
        if truncated:  # the closing token stays, as it does in training
            ids = [*ids[: max_length - 1], ids[-1]]
            offsets = [*offsets[: max_length - 1], offsets[-1]]
            words = [*words[: max_length - 1], words[-1]]
        return Encoding(ids, offsets, words, truncated)

    def _special(self, name: str) -> int:
        value = getattr(self._tokenizer, name)
        if value is None:
            raise InvalidInput("BaseModelUnsupported", f"The base model's tokenizer defines no {name}.")
        return int(value)
