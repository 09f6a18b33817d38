"""Conditions and phases in a resource's ``status``, and functions to set and find conditions.

``True`` is good, except for ``Reconciling`` and ``Stalled``, which have the meaning and polarity of kstatus
(sigs.k8s.io/cli-utils). A reason is CamelCase and listed in ``hmi_api.resources.reasons``.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class ConditionStatus(StrEnum):
    """The three values Kubernetes allows."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class DomainCondition(StrEnum):
    """Condition types of a Domain: the steps in their order, then those that sum them up."""

    ACCEPTED = "Accepted"
    CORPUS_READY = "CorpusReady"
    TRAINED = "Trained"
    TABLE_BUILT = "TableBuilt"
    PUBLISHED = "Published"
    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class TaskAdapterCondition(StrEnum):
    """Condition types of a TaskAdapter: the steps in their order, then those that sum them up."""

    ACCEPTED = "Accepted"
    DOMAIN_READY = "DomainReady"
    QUOTA_AVAILABLE = "QuotaAvailable"
    TRAINED = "Trained"
    GATE_PASSED = "GatePassed"
    PUBLISHED = "Published"
    SCHEDULED = "Scheduled"
    LOADED = "Loaded"
    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


SUMMARIES = frozenset({"Ready", "Reconciling", "Stalled"})
"""Condition types that sum up the steps: their reason and message are those of a step."""


class Condition(BaseModel):
    """One entry of ``status.conditions``, as Kubernetes defines it."""

    model_config = ConfigDict(populate_by_name=True)

    type: str = Field(description="What this condition is about; unique in the list.")
    status: ConditionStatus = Field(description="True, False or Unknown.")
    reason: str = Field(description="CamelCase word that says why.")
    message: str = Field(default="", description="Sentence for a person: what happened and what to do.")
    last_transition_time: str = Field(
        alias="lastTransitionTime",
        description="When status last changed, RFC 3339, UTC.",
        json_schema_extra={"format": "date-time"},
    )
    observed_generation: int | None = Field(
        default=None, alias="observedGeneration", description="Generation of the spec this speaks of."
    )


def now_rfc3339() -> str:
    """Return the present moment as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def set_condition(
    conditions: Sequence[Condition],
    type_: str,
    status: ConditionStatus,
    reason: str,
    message: str = "",
    *,
    generation: int | None = None,
    now: str | None = None,
) -> list[Condition]:
    """Return ``conditions`` with ``type_`` set; its transition time is kept unless its status changes."""
    old = find_condition(conditions, type_)
    kept = old.last_transition_time if old is not None and old.status == status else None
    new = Condition(
        type=type_,
        status=status,
        reason=reason,
        message=message,
        last_transition_time=kept or now or now_rfc3339(),
        observed_generation=generation,
    )
    if old is None:
        return [*conditions, new]
    return [new if condition.type == type_ else condition for condition in conditions]


def find_condition(conditions: Sequence[Condition], type_: str) -> Condition | None:
    """Return the condition of that type, or None."""
    return next((condition for condition in conditions if condition.type == type_), None)


def is_true(conditions: Sequence[Condition], type_: str) -> bool:
    """Return whether the condition of that type is there and True."""
    condition = find_condition(conditions, type_)
    return condition is not None and condition.status == ConditionStatus.TRUE


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
