"""Random texts of given lengths in tokens, for benchmarks whose time does not depend on the words."""

import json
import math
import random
from collections.abc import Sequence

from hmi_runtime.models.source import BaseModel

_SPECIAL_TOKENS = 2  # [CLS] and [SEP]


class TextMaker:
    """Draws texts of words that are one token each, so that lengths are exact."""

    def __init__(self, base: BaseModel, seed: int = 0) -> None:
        """Read the vocabulary of ``base``, which must have a word-piece tokenizer."""
        vocabulary = json.loads((base.path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        self._words = sorted(
            word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2
        )
        self._random = random.Random(seed)  # noqa: S311 - texts, not secrets

    def text(self, tokens: int) -> str:
        """Return a new text of ``tokens`` tokens, special ones included."""
        return " ".join(self._random.choices(self._words, k=max(1, tokens - _SPECIAL_TOKENS)))

    def texts(self, lengths: Sequence[int]) -> list[str]:
        """Return one new text for each length."""
        return [self.text(tokens) for tokens in lengths]


# Lengths follow a log-normal distribution, chosen for a mix of short messages and single sentences and not
# fitted to a data set: half of the texts have at most 30 tokens, one in ten has more than 72.
_MEDIAN = 30
_SPREAD = 0.68
_SHORTEST, _LONGEST = 5, 128


def text_lengths(rows: int, seed: int = 0) -> Sequence[int]:
    """Return the lengths of ``rows`` texts as in a batch of texts of similar lengths.

    Sixteen times as many lengths are drawn and sorted, and the batch around the mean length is taken, so that
    it has a little padding, as when serving.
    """
    drawn = sorted(draw_lengths(16 * rows, seed))
    mean = sum(drawn) / len(drawn)
    start = next(place for place in range(0, len(drawn), rows) if drawn[place + rows - 1] >= mean)
    return drawn[start : start + rows]


def draw_lengths(texts: int, seed: int = 0) -> list[int]:
    """Return the lengths of ``texts`` texts in random order."""
    source = random.Random(seed)  # noqa: S311 - lengths, not secrets
    return [
        min(_LONGEST, max(_SHORTEST, round(_MEDIAN * math.exp(source.gauss(0, _SPREAD)))))
        for _ in range(texts)
    ]
