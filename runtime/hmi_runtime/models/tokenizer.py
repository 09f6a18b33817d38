"""Tokenising: text or words to ids, with the way back to characters and words."""

import errno
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from transformers import AutoTokenizer

from hmi_api.errors import InvalidInput
from hmi_runtime.library_errors import describe_error
from hmi_runtime.models.piece_cache import PieceCache, splits_at_spaces

MAX_TOKENIZER_BYTES = 256 << 20

_FILES = (
    "tokenizer*.json",
    "vocab.*",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "merges.txt",
)


@dataclass(frozen=True)
class Encoding:
    """One tokenised text, special tokens included.

    ``offsets`` are character ranges in the text (of each word, for pre-split words); special tokens have
    (0, 0) and ``word_ids`` None. Both are empty if only the ids were asked for.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]

    def cut(self, max_length: int | None, side: Literal["left", "right"] = "right") -> "Encoding":
        """Return the encoding truncated to ``max_length`` tokens; the first and last special token stay.

        ``side`` is the end at which tokens are cut off; ``max_length`` None cuts nothing.
        """
        length = len(self.ids)
        if max_length is None or length <= max_length:
            return self
        if side == "right":
            first, last = slice(max_length - 1), slice(length - 1, None)
        else:
            first, last = slice(1), slice(length - max_length + 1, None)
        return Encoding(
            self.ids[first] + self.ids[last],
            self.offsets[first] + self.offsets[last],
            self.word_ids[first] + self.word_ids[last],
        )

    def first_tokens(self) -> list[tuple[int, int]]:
        """Return (position of its first token, word number) of each word that has a token, in order."""
        found, previous = [], None
        for place, word in enumerate(self.word_ids):
            if word is not None and word != previous:
                found.append((place, word))
            previous = word
        return found


class Tokenizer:
    """A checkpoint's own fast tokenizer.

    ``cls_id`` and ``sep_id`` are the first and last token of every text, ``pad_id`` is padding.
    """

    def __init__(self, folder: Path) -> None:
        _check_sizes(folder)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # tokenizers raises plain ones, transformers whatever the files lead it to
            if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
                raise
            raise InvalidInput(
                "BaseModelUnsupported",
                f"No tokenizer could be read from the base model's folder ({describe_error(error)}); give "
                "the checkpoint again.",
            ) from error
        if not self._tokenizer.is_fast:
            raise InvalidInput(
                "BaseModelUnsupported", "The base model has no fast tokenizer (tokenizer.json); add one."
            )
        self.cls_id, self.sep_id, self.pad_id = (
            self._special(f"{name}_token_id") for name in ("cls", "sep", "pad")
        )
        # This class truncates and pads itself, whatever tokenizer.json says.
        self._tokenizer.backend_tokenizer.no_truncation()
        self._tokenizer.backend_tokenizer.no_padding()
        self._backend = self._tokenizer.backend_tokenizer
        self._backend.encode_special_tokens = True
        parts = json.loads(self._backend.to_str())
        # In a byte-level vocabulary, the space before a word is part of its first token.
        self._byte_level = '"ByteLevel"' in json.dumps(parts["pre_tokenizer"])
        self.special_tokens = len(self._backend.encode("").ids)
        """How many tokens an empty text has."""
        self._pieces = PieceCache(self._backend) if splits_at_spaces(parts, self._backend) else None

    def encode(self, texts: Sequence[str], max_length: int | None) -> list[Encoding]:
        """Tokenise texts, each truncated to ``max_length`` tokens (None: not), special ones included."""
        encoded = [_read(encoding) for encoding in self._backend.encode_batch(list(texts))]
        if self._byte_level:
            encoded = [_without_spaces(one, text) for one, text in zip(encoded, texts, strict=True)]
        return [one.cut(max_length) for one in encoded]

    def encode_ids(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokenise texts without ``offsets`` and ``word_ids``, in a fraction of the time of ``encode``."""
        if self._pieces is None:
            found = [list(one.ids) for one in self._backend.encode_batch_fast(list(texts))]
        else:
            found = [self._pieces.ids(text) for text in texts]
        return [Encoding(ids, [], []) for ids in found]

    def encode_words(self, rows: Sequence[Sequence[str]], max_length: int | None) -> list[Encoding]:
        """Tokenise rows of words; ``word_ids`` tell which word each token came from.

        The ids are those of the words joined by spaces, as they would be in a text.
        """
        if self._byte_level:  # such a tokenizer would treat each word as the start of a text
            joined = self.encode([" ".join(words) for words in rows], max_length)
            return [_by_word(one, words) for one, words in zip(joined, rows, strict=True)]
        batch = [list(words) for words in rows]
        encoded = self._backend.encode_batch(batch, is_pretokenized=True)
        return [_read(encoding).cut(max_length) for encoding in encoded]

    def _special(self, name: str) -> int:
        value = getattr(self._tokenizer, name)
        if value is None:
            raise InvalidInput("BaseModelUnsupported", f"The base model's tokenizer defines no {name}.")
        return int(value)


def _check_sizes(folder: Path) -> None:
    for pattern in _FILES:
        for path in folder.glob(pattern):
            if path.stat().st_size > MAX_TOKENIZER_BYTES:
                raise InvalidInput(
                    "BaseModelUnsupported",
                    f"{path.name} of the base model has over {MAX_TOKENIZER_BYTES >> 20} MiB, too much "
                    "for a tokenizer.",
                )


def _read(encoding: Any) -> Encoding:
    words = [
        None if special else word
        for word, special in zip(encoding.word_ids, encoding.special_tokens_mask, strict=True)
    ]
    return Encoding(list(encoding.ids), list(encoding.offsets), words)


def _without_spaces(encoding: Encoding, text: str) -> Encoding:
    """Return the encoding with spaces removed from offsets; a token of spaces only belongs to no word."""
    offsets, words = [], []
    for (start, end), word in zip(encoding.offsets, encoding.word_ids, strict=True):
        piece = text[start:end]
        begin = start + len(piece) - len(piece.lstrip())
        offsets.append((begin, max(begin, start + len(piece.rstrip()))))
        words.append(word if piece.strip() else None)
    return Encoding(encoding.ids, offsets, words)


def _by_word(encoding: Encoding, words: Sequence[str]) -> Encoding:
    """Return the encoding of ``words`` joined by spaces, with word numbers and offsets within each word."""
    starts = [0, *accumulate(len(word) + 1 for word in words[:-1])]
    offsets: list[tuple[int, int]] = []
    numbers: list[int | None] = []
    for (start, end), piece in zip(encoding.offsets, encoding.word_ids, strict=True):
        number = bisect_right(starts, start) - 1
        numbers.append(None if piece is None else number)
        offsets.append((0, 0) if piece is None else (start - starts[number], end - starts[number]))
    return Encoding(encoding.ids, offsets, numbers)
