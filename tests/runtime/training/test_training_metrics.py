"""Metrics compared with cases computed by hand and with seqeval, and the gate."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2

from hmi_api.errors import InvalidInput
from hmi_api.resources.task_adapter import Gate, Metric, TaskType, check_gate_fits
from hmi_api.tag_schemes import TagScheme, scheme_or_plain
from hmi_runtime.training.examples import IGNORED, Examples
from hmi_runtime.training.labelled_data import LabelledRows, TaggedRows
from hmi_runtime.training.metrics import accuracy, check_gate, entity_f1, macro_f1

tags = st.lists(st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y"]), max_size=12)


def test_accuracy() -> None:
    assert accuracy(["a", "b", "a", "c"], ["a", "b", "b", "c"]) == 0.75
    assert accuracy([], []) == 0.0


def test_macro_f1_weighs_labels_equally() -> None:
    # a: 2 right of 3 found and 2 wanted -> 0.8; b: 0 right -> 0; c: 1 of 1 -> 1.
    assert macro_f1(["a", "a", "b", "c"], ["a", "a", "a", "c"]) == pytest.approx((0.8 + 0 + 1) / 3)


def test_entity_f1_counts_whole_entities_over_all_rows() -> None:
    truth = [["B-x", "I-x", "O", "B-y"], ["O", "B-x"]]
    guess = [["B-x", "O", "O", "B-y"], ["B-x", "B-x"]]
    # wanted 3, found 4, right 2 (the first entity's end is wrong)
    assert entity_f1(truth, guess, TagScheme.IOB2) == pytest.approx(2 * 2 / (3 + 4))
    assert entity_f1([["O"]], [["O"]], TagScheme.IOB2) == 0.0


@pytest.mark.parametrize("label", ["a", "O"])  # a row's label may be O, which means no entity for tokens
def test_agreement_of_rows_is_the_share_with_equal_labels(label: str) -> None:
    rows = LabelledRows(["", "", "", ""], [label, label, "b", "b"])
    examples = Examples([], [np.array([0])] * 4, rows, [label, "b"])
    ours, theirs = ([np.array([label]) for label in labels] for labels in ([0, 1, 1, 0], [0, 1, 0, 0]))
    assert examples.agreement(ours, theirs) == 0.75


def test_agreement_of_tokens_ignores_those_that_are_o_in_both() -> None:
    targets = [np.array([IGNORED, 0, 0, IGNORED]), np.array([0, 0])]
    examples = Examples([], targets, TaggedRows.of([], []), ["O", "B-x", "I-x"])
    ours = [np.array([1, 1, 0, 2]), np.array([0, 2])]
    theirs = [np.array([2, 1, 0, 0]), np.array([1, 2])]
    # Of four scored tokens one is O in both; of the three others one differs.
    assert examples.agreement(ours, theirs) == pytest.approx(2 / 3)
    outside = [np.zeros(4, np.int64), np.zeros(2, np.int64)]
    assert examples.agreement(outside, outside) == 1.0


@pytest.mark.parametrize(
    ("truth", "guess", "expected"),
    [
        ("S-PER", "S-PER", 1.0),
        ("PER O", "PER O", 1.0),
        ("B-P E-P", "B-P O", 0.0),
        ("U-P O", "U-P O", 1.0),
        ("B-P I-P", "I-P I-P", 0.0),  # the guess does not follow IOB2
        ("I-P I-P O", "I-P I-P O", 1.0),
        ("B-P I-P O", "B-P O O", 0.0),
    ],
)
def test_entity_f1_reads_every_scheme(truth: str, guess: str, expected: float) -> None:
    scheme = scheme_or_plain({*truth.split(), *guess.split()}, [truth.split()])
    assert entity_f1([truth.split()], [guess.split()], scheme) == expected


@given(st.lists(tags, max_size=5), st.lists(tags, min_size=5, max_size=5))
def test_entity_f1_equals_seqevals_strict_mode(truth: list[list[str]], guesses: list[list[str]]) -> None:
    pairs = [
        (row, guess[: len(row)] + ["O"] * (len(row) - len(guess)))
        for row, guess in zip(truth, guesses, strict=False)
    ]
    rows, guess = [row for row, _ in pairs], [row for _, row in pairs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no entities at all
        expected = f1_score(rows, guess, mode="strict", scheme=IOB2) if any(rows) else 0.0
    assert entity_f1(rows, guess, TagScheme.IOB2) == pytest.approx(float(expected))


def test_a_gate_is_compared_with_its_metric() -> None:
    gate = Gate(metric=Metric.ACCURACY, minimum=0.8)
    assert check_gate(gate, {"accuracy": 0.8, "macro_f1": 0.1}, 10).passed
    assert check_gate(None, {}, 0).passed
    missed = check_gate(gate, {"accuracy": 0.7987}, 321)
    assert not missed.passed
    for part in ("accuracy", "0.7987", "0.8000", "321"):
        assert part in missed.message


@pytest.mark.parametrize(
    ("gate", "task", "has_data", "reason"),
    [
        (Gate(metric=Metric.ACCURACY, minimum=0.5), TaskType.SEQUENCE_CLASSIFICATION, False, "GateNeedsData"),
        (
            Gate(metric=Metric.ENTITY_F1, minimum=0.5),
            TaskType.SEQUENCE_CLASSIFICATION,
            True,
            "GateMetricMismatch",
        ),
    ],
)
def test_gates_that_cannot_be_measured_are_refused(
    gate: Gate, task: TaskType, has_data: bool, reason: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_gate_fits(gate, task, has_data=has_data)
    assert caught.value.reason == reason
