"""Scores of predictions on held-out rows: accuracy, macro F1 and entity F1, from 0 to 1.

The training programs score their own runs; these score what came back through the gateway.
"""

from collections.abc import Sequence
from itertools import accumulate

from hmi_api.tag_schemes import TagScheme, entities

Span = tuple[int, int, str]
"""First character, one past the last, label."""


def accuracy(truth: Sequence[str], guess: Sequence[str]) -> float:
    """Return the share of rows that are right."""
    return sum(a == b for a, b in zip(truth, guess, strict=True)) / len(truth) if truth else 0.0


def macro_f1(truth: Sequence[str], guess: Sequence[str]) -> float:
    """Return the mean over the labels of each label's F1."""
    labels = sorted(set(truth) | set(guess))
    return sum(_label_f1(truth, guess, label) for label in labels) / len(labels) if labels else 0.0


def _label_f1(truth: Sequence[str], guess: Sequence[str], label: str) -> float:
    pairs = list(zip(truth, guess, strict=True))
    both = sum(a == b == label for a, b in pairs)
    return f1(both, sum(a == label for a, _ in pairs), sum(b == label for _, b in pairs))


def entity_f1(truth: Sequence[set[Span]], guess: Sequence[set[Span]]) -> float:
    """Return the F1 of whole stretches: a stretch counts when its limits and its label are right."""
    both = sum(len(a & b) for a, b in zip(truth, guess, strict=True))
    return f1(both, sum(map(len, truth)), sum(map(len, guess)))


def f1(both: int, expected: int, predicted: int) -> float:
    """Return the harmonic mean of precision and recall."""
    return 2 * both / (expected + predicted) if expected + predicted else 0.0


def spans_of(words: Sequence[str], tags: Sequence[str]) -> set[Span]:
    """Return the stretches that IOB2 tags mark in the words joined by single spaces."""
    ends = list(accumulate(len(word) + 1 for word in words))
    return {
        (ends[start] - len(words[start]) - 1, ends[end - 1] - 1, kind)
        for start, end, kind in entities(tags, TagScheme.IOB2)
    }
