"""Metrics on held-out rows, each 0 to 1 and higher is better."""

from collections.abc import Sequence

OUTSIDE = "O"

Span = tuple[int, int, str]
"""An entity: first word, one past the last, and its type."""


def accuracy(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the share of rows whose label is right; 0 for no rows."""
    right = sum(ours == theirs for ours, theirs in zip(predicted, truth, strict=True))
    return right / len(truth) if truth else 0.0


def macro_f1(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the mean of every label's F1, over the labels that occur on either side."""
    labels = set(truth) | set(predicted)
    pairs = list(zip(truth, predicted, strict=True))
    scores = []
    for label in labels:
        right = sum(theirs == ours == label for theirs, ours in pairs)
        scores.append(_f1(right, sum(ours == label for ours in predicted), sum(t == label for t in truth)))
    return sum(scores) / len(scores) if scores else 0.0


def entity_f1(truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Return the F1 of whole entities over rows of BIO tags: type and both ends must be right.

    As CoNLL-2003 scores it: counts of all types and rows together.
    """
    right = ours = theirs = 0
    for row, guess in zip(truth, predicted, strict=True):
        wanted, found = set(entities(row)), set(entities(guess))
        right += len(wanted & found)
        ours += len(found)
        theirs += len(wanted)
    return _f1(right, ours, theirs)


def entities(tags: Sequence[str]) -> list[Span]:
    """Return the entities of a row of BIO tags.

    ``B-x`` opens one and ``I-x`` goes on with it; an ``I-x`` that follows nothing of its type opens one
    too, as the CoNLL script has it.
    """
    spans: list[Span] = []
    start, kind = 0, ""
    for place, tag in enumerate((*tags, OUTSIDE)):
        prefix, _, name = tag.partition("-")
        goes_on = prefix == "I" and name == kind and kind != ""
        if not goes_on:
            if kind:
                spans.append((start, place, kind))
            start, kind = place, name if prefix in ("B", "I") else ""
    return spans


def _f1(right: int, found: int, wanted: int) -> float:
    return 2 * right / (found + wanted) if found + wanted else 0.0
