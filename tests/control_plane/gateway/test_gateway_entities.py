"""Entities merged from labelled words."""

import pytest

from hmi_api.wire import TokenLabel
from hmi_control_plane.gateway.entities import merge_entities


def tokens(*labels: str) -> list[TokenLabel]:
    """Return words w, one a label, joined by one space."""
    return [
        TokenLabel(text="w", start=2 * place, end=2 * place + 1, label=label, score=place / 10)
        for place, label in enumerate(labels)
    ]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([], []),
        (["O", "O"], []),
        (["B-X", "I-X", "O", "I-X"], [("X", 0, 3), ("X", 6, 7)]),
        (["B-X", "B-X"], [("X", 0, 1), ("X", 2, 3)]),
        (["B-X", "I-Y"], [("X", 0, 1), ("Y", 2, 3)]),
        (["I-X", "I-X"], [("X", 0, 3)]),
        (["S-X", "B-X", "I-X", "E-X", "I-X"], [("X", 0, 1), ("X", 2, 7), ("X", 8, 9)]),
        (["part", "part", "O", "part", "price"], [("part", 0, 3), ("part", 6, 7), ("price", 8, 9)]),
        (["part-no", "part-no"], [("part-no", 0, 3)]),
    ],
)
def test_labels_become_stretches(labels: list[str], expected: list[tuple[str, int, int]]) -> None:
    words = ["w"] * len(labels)
    for text in (words, " ".join(words)):
        found = merge_entities(text, tokens(*labels))
        assert [(entity.label, entity.start, entity.end) for entity in found] == expected
        assert [entity.text for entity in found] == [" ".join(words)[start:end] for _, start, end in expected]


def test_the_score_is_the_mean() -> None:
    [entity] = merge_entities("w w w", tokens("B-X", "I-X", "I-X"))
    assert entity.score == pytest.approx(0.1)
