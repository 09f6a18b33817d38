"""Entities merged from labelled words, in the tag scheme with which the gate was measured."""

import pytest

from hmi_api.internal.inference import RowResult, TokenLabel
from hmi_api.tag_schemes import TagScheme
from hmi_control_plane.gateway.inference import merge_entities


def answer(*labels: str, known: str = "", scheme: TagScheme | None = None) -> RowResult:
    """Return a result with one word w for each label; ``known`` are the adapter's labels."""
    tokens = [
        TokenLabel(text="w", start=2 * place, end=2 * place + 1, label=label, score=place / 10)
        for place, label in enumerate(labels)
    ]
    return RowResult(labels=known.split() or sorted({"O", *labels}), tokens=tokens, tag_scheme=scheme)


@pytest.mark.parametrize(
    ("labels", "known", "scheme", "expected"),
    [
        ("", "O B-X", None, []),
        ("O O", "O B-X", None, []),
        ("B-X I-X O I-X", "", None, [("X", 0, 3), ("X", 6, 7)]),
        ("B-X I-X O I-X", "", TagScheme.IOB2, [("X", 0, 3)]),
        ("B-X I-X O I-X", "", TagScheme.IOB1, [("X", 2, 3), ("X", 6, 7)]),
        ("B-X B-X", "", None, [("X", 0, 1), ("X", 2, 3)]),
        ("B-X I-Y", "", None, [("X", 0, 1), ("Y", 2, 3)]),
        ("I-X I-X", "", None, [("X", 0, 3)]),
        ("S-X B-X I-X E-X I-X", "", None, [("X", 0, 1), ("X", 2, 7)]),
        ("B-X O", "O B-X I-X E-X S-X", None, []),
        ("part part O part price", "", None, [("part", 0, 3), ("part", 6, 7), ("price", 8, 9)]),
        ("part-no part-no", "", None, [("part-no", 0, 3)]),
        ("NOUN VERB VERB", "NOUN VERB", None, [("NOUN", 0, 1), ("VERB", 2, 5)]),
    ],
)
def test_token_labels_are_merged_into_entities(
    labels: str, known: str, scheme: TagScheme | None, expected: list[tuple[str, int, int]]
) -> None:
    words = ["w"] * len(labels.split())
    for text in (words, " ".join(words)):
        found = merge_entities(text, answer(*labels.split(), known=known, scheme=scheme))
        assert [(entity.label, entity.start, entity.end) for entity in found] == expected
        assert [entity.text for entity in found] == [" ".join(words)[start:end] for _, start, end in expected]


def test_an_entitys_score_is_the_mean_of_its_tokens() -> None:
    [entity] = merge_entities("w w w", answer("B-X", "I-X", "I-X"))
    assert entity.score == pytest.approx(0.1)
