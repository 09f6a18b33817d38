"""The gate: what a version must reach on held-out rows before it serves."""

from collections.abc import Mapping
from dataclasses import dataclass

from hmi_api.resources.task_adapter import Gate


@dataclass(frozen=True)
class Verdict:
    """Whether a gate was passed, and a sentence for the user when it was not."""

    passed: bool
    message: str = ""


def judge(gate: Gate | None, metrics: Mapping[str, float], rows: int) -> Verdict:
    """Hold ``metrics``, measured on ``rows`` held-out rows, against the gate."""
    if gate is None:
        return Verdict(True)
    value = metrics[gate.metric.value]
    if value >= gate.minimum:
        return Verdict(True)
    return Verdict(
        False,
        f"{gate.metric.value} is {value:.4f} on {rows} held-out rows, the gate asks for {gate.minimum:.4f}. "
        "Give more or cleaner training rows, train for more epochs, use a Domain trained on this kind of "
        "text, or lower gate.minimum.",
    )
