"""The one word that sums a resource up for people."""

from hmi_operator.plan.runs import Standpoint

_WITHOUT_VERSION = {
    Standpoint.SUSPENDED: "Suspended",
    Standpoint.STARTING: "Pending",
    Standpoint.RUNNING: "Training",
    Standpoint.RETRYING: "Retrying",
    Standpoint.FAILED: "Failed",
    Standpoint.GATE_FAILED: "Failed",
}
_WITH_VERSION = {
    Standpoint.SUSPENDED: "Suspended",
    Standpoint.STARTING: "Updating",
    Standpoint.RUNNING: "Updating",
    Standpoint.RETRYING: "Updating",
    Standpoint.FAILED: "Degraded",
    Standpoint.GATE_FAILED: "Degraded",
}


def phase_of(standpoint: Standpoint, *, published: bool, ready: bool) -> str:
    """Return the phase for where training stands, and whether a version is published and serves.

    ``Updating`` and ``Degraded`` say that an older version serves while the declared one is being made, or
    could not be made; ``Loading`` that no runtime holds the published version yet.
    """
    if published and not ready:
        return "Loading"
    if standpoint is Standpoint.UP_TO_DATE:
        return "Ready"
    return (_WITH_VERSION if published else _WITHOUT_VERSION)[standpoint]
