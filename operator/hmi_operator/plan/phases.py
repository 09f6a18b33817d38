"""The one word that sums a resource up for people."""

from hmi_api.resources.conditions import Phase
from hmi_operator.plan.runs import Standpoint

_NOTHING_SERVES = {
    Standpoint.SUSPENDED: Phase.SUSPENDED.value,
    Standpoint.STARTING: Phase.PENDING.value,
    Standpoint.QUEUED: Phase.PENDING.value,
    Standpoint.RUNNING: Phase.TRAINING.value,
    Standpoint.RETRYING: Phase.RETRYING.value,
    Standpoint.FAILED: Phase.FAILED.value,
    Standpoint.GATE_FAILED: Phase.FAILED.value,
}
_ONE_SERVES = {
    Standpoint.SUSPENDED: Phase.SUSPENDED.value,
    Standpoint.STARTING: Phase.UPDATING.value,
    Standpoint.QUEUED: Phase.UPDATING.value,
    Standpoint.RUNNING: Phase.UPDATING.value,
    Standpoint.RETRYING: Phase.UPDATING.value,
    Standpoint.FAILED: Phase.DEGRADED.value,
    Standpoint.GATE_FAILED: Phase.DEGRADED.value,
}


def phase_of(standpoint: Standpoint, *, serves: bool) -> str:
    """Return the phase for where training stands, and whether any version serves.

    ``Updating`` and ``Degraded`` say that an older version serves while the declared one is being made, or
    could not be made.
    """
    if standpoint is Standpoint.UP_TO_DATE:
        return Phase.READY.value
    return (_ONE_SERVES if serves else _NOTHING_SERVES)[standpoint]
