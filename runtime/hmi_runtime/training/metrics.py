"""Metrics on held-out rows, each 0 to 1 and higher is better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hmi_api.resources.task_adapter import Gate
from hmi_api.tag_schemes import TagScheme, entities


def accuracy(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the share of rows with the right label; 0 for no rows."""
    right = sum(ours == theirs for ours, theirs in zip(predicted, truth, strict=True))
    return right / len(truth) if truth else 0.0


def macro_f1(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the mean F1 over the labels that occur in ``truth`` or ``predicted``."""
    labels = set(truth) | set(predicted)
    pairs = list(zip(truth, predicted, strict=True))
    scores = []
    for label in labels:
        right = sum(theirs == ours == label for theirs, ours in pairs)
        scores.append(_f1(right, sum(ours == label for ours in predicted), sum(t == label for t in truth)))
    return sum(scores) / len(scores) if scores else 0.0


def entity_f1(truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], scheme: TagScheme) -> float:
    """Return the F1 of whole entities over rows of tags; type and both ends must be right.

    Counts of all types and rows are added up, as in seqeval's strict mode.
    """
    right = ours = theirs = 0
    for row, guess in zip(truth, predicted, strict=True):
        wanted, found = set(entities(row, scheme)), set(entities(guess, scheme))
        right += len(wanted & found)
        ours += len(found)
        theirs += len(wanted)
    return _f1(right, ours, theirs)


def _f1(right: int, found: int, wanted: int) -> float:
    return 2 * right / (found + wanted) if found + wanted else 0.0


@dataclass(frozen=True)
class GateResult:
    """Whether a gate was passed; if not, a message for the user."""

    passed: bool
    message: str = ""


def check_gate(gate: Gate | None, metrics: Mapping[str, float], rows: int) -> GateResult:
    """Compare ``metrics``, measured on ``rows`` held-out rows, with the gate."""
    if gate is None:
        return GateResult(True)
    value = metrics[gate.metric.value]
    if value >= gate.minimum:
        return GateResult(True)
    return GateResult(
        False,
        f"{gate.metric.value} is {value:.4f} on {rows} held-out rows; the gate requires {gate.minimum:.4f}. "
        "Give more or cleaner training rows, train for more epochs, use a Domain trained on this kind of "
        "text, or lower gate.minimum.",
    )
