"""From sub-token predictions to labelled words: a word's first sub-token decides, tags stay as they are."""

from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor

from hmi_api.internal.inference import TokenLabel
from hmi_runtime.pipeline.rows import Text


def label_words(text: Text, probabilities: Tensor, labels: Sequence[str]) -> list[TokenLabel]:
    """Return one label a word from ``probabilities`` (T, labels) of the text's tokens.

    Ranges are of characters in the text; for a text that came as words, in the words joined by one space.
    Words that have no tokens have no label.
    """
    firsts = text.encoding.first_tokens()
    scores, choices = probabilities[[position for position, _ in firsts]].max(dim=1)  # (words,), (words,)
    spans = _split_spans(text.words, firsts) if text.words is not None else _text_spans(text, firsts)
    return [
        TokenLabel(text=word, start=start, end=start + len(word), label=labels[choice], score=score)
        for (word, start), choice, score in zip(spans, choices.tolist(), scores.tolist(), strict=True)
    ]


def _split_spans(words: Sequence[str], firsts: Sequence[tuple[int, int]]) -> list[tuple[str, int]]:
    """Return (word, start) for words that came split, as if joined by one space."""
    starts = [0, *accumulate(len(word) + 1 for word in words)]
    return [(words[word], starts[word]) for _, word in firsts]


def _text_spans(text: Text, firsts: Sequence[tuple[int, int]]) -> list[tuple[str, int]]:
    """Return (word, start) from the tokenizer's own split of a text, first to last sub-token."""
    offsets = text.encoding.offsets
    last = {word: position for position, word in enumerate(text.encoding.word_ids) if word is not None}
    return [
        (text.text[offsets[position][0] : offsets[last[word]][1]], offsets[position][0])
        for position, word in firsts
    ]
