"""Conditions and phases in a resource's ``status``, and functions to set and find conditions.

``True`` is good, except for ``Reconciling`` and ``Stalled``, which have the meaning and polarity of kstatus
(sigs.k8s.io/cli-utils). A reason is CamelCase and listed in ``hmi_api.resources.reasons``.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field


class ConditionStatus(StrEnum):
    """The three values Kubernetes allows."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class DocumentedEnum(StrEnum):
    """An enumeration whose values have an ``explanation`` for the reference page."""

    explanation: str

    def __new__(cls, value: str, explanation: str) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.explanation = explanation
        return member


_RECONCILING = "Reconciling", "The declared spec is not in effect yet, and work on it continues."
_STALLED = "Stalled", "The declared spec is not in effect, and will not be until something is changed."


class DomainCondition(DocumentedEnum):
    """Condition types of a Domain and when each is True: the steps in order, then summaries."""

    ACCEPTED = "Accepted", "The spec is accepted."
    CORPUS_READY = "CorpusReady", "The corpus was read and contains text."
    TRAINED = "Trained", "The lower layers and the bridge are distilled."
    TABLE_BUILT = "TableBuilt", "The lookup table is built and measured."
    PUBLISHED = "Published", "The declared spec has a version in the catalog."
    REFRESHED = "Refreshed", "With plot.refresh: the table is refreshed when it is time; the last one worked."
    READY = "Ready", "A version, this one or an earlier one, can be used by TaskAdapters and child Domains."
    RECONCILING = _RECONCILING
    STALLED = _STALLED


class TaskAdapterCondition(DocumentedEnum):
    """Condition types of a TaskAdapter, as ``DomainCondition``."""

    ACCEPTED = "Accepted", "The spec is accepted."
    DOMAIN_READY = "DomainReady", "Its Domain has a published version."
    QUOTA_AVAILABLE = "QuotaAvailable", "The tenant's quota allows it."
    TRAINED = "Trained", "The adapter is trained, or imported."
    GATE_PASSED = "GatePassed", "The metric on held-out rows reached the gate's minimum."
    PUBLISHED = "Published", "The declared spec has a version in the catalog."
    SCHEDULED = "Scheduled", "The declared spec's version is placed on a runtime."
    LOADED = "Loaded", "A runtime has loaded the declared spec's version, and answers with it."
    READY = "Ready", "A version, this one or an earlier one, answers requests."
    RECONCILING = _RECONCILING
    STALLED = _STALLED


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
        default=None, alias="observedGeneration", description="Generation of the spec that it describes."
    )


def set_condition(
    conditions: Sequence[Condition],
    type_: str,
    status: ConditionStatus,
    reason: str,
    message: str = "",
    *,
    generation: int | None = None,
    now: str,
) -> list[Condition]:
    """Return ``conditions`` with ``type_`` set; its transition time is kept unless its status changes."""
    old = find_condition(conditions, type_)
    kept = old.last_transition_time if old is not None and old.status == status else None
    new = Condition(
        type=type_,
        status=status,
        reason=reason,
        message=message,
        last_transition_time=kept or now,
        observed_generation=generation,
    )
    if old is None:
        return [*conditions, new]
    return [new if condition.type == type_ else condition for condition in conditions]


def find_condition(conditions: Sequence[Condition], type_: str) -> Condition | None:
    """Return the condition of that type, or None."""
    return next((condition for condition in conditions if condition.type == type_), None)


class Phase(DocumentedEnum):
    """A phase, for people. Programs read the conditions instead."""

    PENDING = "Pending", "A training run is being created, or waits in the queue."
    WAITING = "Waiting", "A resource that it refers to is missing or not published yet."
    TRAINING = "Training", "The first version is being trained; none serves yet."
    RETRYING = "Retrying", "A run failed for a temporary cause and is tried again."
    UPDATING = "Updating", "An earlier version serves while a new one is trained or loaded."
    NO_RUNTIME = "NoRuntime", "A version is published, but no runtime is running or has room for it."
    LOADING = "Loading", "A version is published, and its runtimes are loading it."
    READY = "Ready", "The declared spec is published and serves."
    DEGRADED = "Degraded", "An earlier version serves: the new one could not be trained or loaded."
    FAILED = "Failed", "Nothing serves, and waiting does not help; the conditions say what to do."
    SUSPENDED = "Suspended", "spec.suspend keeps the declared spec from being trained."
    TERMINATING = "Terminating", "It is being deleted."
