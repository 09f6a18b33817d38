"""Made-up texts of a wanted length in tokens, for benchmarks whose time does not depend on what they say."""

import json
import random
from collections.abc import Sequence

from hmi_runtime.models import BaseModel

_SPECIAL_TOKENS = 2  # [CLS] and [SEP]


class TextMaker:
    """Draws texts of words that the base model's tokenizer keeps whole, so that lengths come out exact."""

    def __init__(self, base: BaseModel, seed: int = 0) -> None:
        """Read the vocabulary of ``base``, which must be a word-piece one of lower-case words."""
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
