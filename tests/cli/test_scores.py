"""Scores of predictions."""

import pytest

from hmi_cli.demo.traffic import accuracy, entity_f1, macro_f1, spans_of


def test_accuracy_is_the_share_of_correct_rows() -> None:
    assert accuracy(["a", "b", "a", "c"], ["a", "b", "b", "c"]) == 0.75


def test_macro_f1_weighs_labels_alike() -> None:
    # a: 2 * 3 / (3 + 4); b: never guessed.
    assert macro_f1(["a", "a", "a", "b"], ["a", "a", "a", "a"]) == pytest.approx((6 / 7 + 0) / 2)


def test_spans_are_counted_in_characters_of_the_joined_words() -> None:
    words = ["From", "9", "August", "for", "two", "nights", "."]
    tags = ["O", "B-DAY", "I-DAY", "O", "B-STAY", "I-STAY", "O"]
    assert spans_of(words, tags) == {(5, 13, "DAY"), (18, 28, "STAY")}


def test_entity_f1_compares_ranges_and_labels() -> None:
    truth = [{(0, 3, "DAY"), (5, 9, "NAME")}, set()]
    assert entity_f1(truth, truth) == 1
    assert entity_f1(truth, [{(0, 3, "DAY"), (5, 8, "NAME")}, set()]) == 0.5
    assert entity_f1(truth, [set(), set()]) == 0
