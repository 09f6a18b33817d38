"""The one word that sums a resource up for people."""

from hmi_api.resources.conditions import Phase
from hmi_operator.planning.training import TrainingPhase

_NOTHING_SERVES = {
    TrainingPhase.SUSPENDED: Phase.SUSPENDED.value,
    TrainingPhase.STARTING: Phase.PENDING.value,
    TrainingPhase.QUEUED: Phase.PENDING.value,
    TrainingPhase.RUNNING: Phase.TRAINING.value,
    TrainingPhase.RETRYING: Phase.RETRYING.value,
    TrainingPhase.FAILED: Phase.FAILED.value,
    TrainingPhase.GATE_FAILED: Phase.FAILED.value,
}
_ONE_SERVES = {
    TrainingPhase.SUSPENDED: Phase.SUSPENDED.value,
    TrainingPhase.STARTING: Phase.UPDATING.value,
    TrainingPhase.QUEUED: Phase.UPDATING.value,
    TrainingPhase.RUNNING: Phase.UPDATING.value,
    TrainingPhase.RETRYING: Phase.UPDATING.value,
    TrainingPhase.FAILED: Phase.DEGRADED.value,
    TrainingPhase.GATE_FAILED: Phase.DEGRADED.value,
}


def phase_of(phase: TrainingPhase, *, serves: bool) -> str:
    """Return the phase for where training stands, and whether any version serves.

    ``Updating`` and ``Degraded`` say that an older version serves while the declared one is being made, or
    could not be made.
    """
    if phase is TrainingPhase.UP_TO_DATE:
        return Phase.READY.value
    return (_ONE_SERVES if serves else _NOTHING_SERVES)[phase]
