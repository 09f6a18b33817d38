"""Which gates can be measured at all: known before anything is trained."""

from hmi_api.errors import InvalidInput
from hmi_api.task_adapter import Gate, Metric, TaskType


def check_gate_fits(gate: Gate | None, task: TaskType, *, has_data: bool) -> None:
    """Raise ``InvalidInput`` for a gate that could never be measured: GateNeedsData, GateMetricMismatch."""
    if gate is None:
        return
    if not has_data:
        raise InvalidInput(
            "GateNeedsData",
            "An imported adapter comes without held-out rows, so its gate cannot be measured; remove gate.",
        )
    if gate.metric is Metric.ENTITY_F1 and task is not TaskType.TOKEN_CLASSIFICATION:
        raise InvalidInput(
            "GateMetricMismatch",
            f"entity_f1 is for TokenClassification; measure {task.value} by accuracy or macro_f1.",
        )
