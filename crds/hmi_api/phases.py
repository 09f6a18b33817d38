"""Phases: the one word in ``status.phase`` that sums a resource up for people."""

from enum import StrEnum


class Phase(StrEnum):
    """A phase, with its ``meaning`` for the reference page. Programs read the conditions instead."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> "Phase":
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    PENDING = "Pending", "A training run is being started, or waits for its turn."
    WAITING = "Waiting", "Something it stands on is missing or not published yet."
    TRAINING = "Training", "A version is being made, and none serves yet."
    RETRYING = "Retrying", "A run failed for a passing cause and is tried again."
    UPDATING = "Updating", "A version serves while the declared spec's is being made or loaded."
    NO_RUNTIME = (
        "NoRuntime",
        "A version is published, and no runtime can take it: none is running, or none has room.",
    )
    LOADING = "Loading", "A version is published, and the runtimes it is placed on are fetching it."
    READY = "Ready", "What is declared is published and serves."
    DEGRADED = (
        "Degraded",
        "An earlier version serves; the declared spec's could not be made or loaded. See the conditions.",
    )
    FAILED = "Failed", "Nothing serves, and waiting does not help; the conditions say why and what to do."
    SUSPENDED = "Suspended", "spec.suspend keeps the declared spec from being made."
    TERMINATING = "Terminating", "It is being deleted."
