"""Writing a status's conditions: one generation and one moment for all of a plan."""

from collections.abc import Sequence
from datetime import UTC, datetime

from hmi_api.resources.conditions import (
    Condition,
    ConditionStatus,
    DomainCondition,
    find_condition,
    set_condition,
)
from hmi_api.resources.reasons import Reason

_RECONCILING, _STALLED = DomainCondition.RECONCILING, DomainCondition.STALLED


class ConditionWriter:
    """Collects the conditions of one plan on top of those that were there; unknown types are kept."""

    def __init__(self, old: Sequence[Condition], *, generation: int, now: datetime) -> None:
        self._conditions = list(old)
        self._generation = generation
        self._now = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    @property
    def written(self) -> list[Condition]:
        """The conditions so far."""
        return list(self._conditions)

    def true(self, type_: str, reason: str, message: str = "") -> None:
        """Say that a action is done."""
        self._set(type_, ConditionStatus.TRUE, reason, message)

    def false(self, type_: str, reason: str, message: str) -> None:
        """Say that a action cannot be done as things stand."""
        self._set(type_, ConditionStatus.FALSE, reason, message)

    def unknown(self, type_: str, reason: str, message: str = "") -> None:
        """Say that a action is under way or not reached."""
        self._set(type_, ConditionStatus.UNKNOWN, reason, message)

    def not_ready(self, types: Sequence[str]) -> None:
        """Say that the resource is not Ready, for the cause that the first of ``types`` not True gives."""
        condition = self.first_open(types)
        if condition is not None:
            self.false(DomainCondition.READY, condition.reason, condition.message)

    def first_open(self, types: Sequence[str]) -> Condition | None:
        """Return the first condition of ``types`` that is not True; None when all are."""
        found = (find_condition(self._conditions, type_) for type_ in types)
        return next((one for one in found if one is not None and one.status != ConditionStatus.TRUE), None)

    # --- kstatus: at most one of Reconciling and Stalled is True ------------------------------------

    def reconciling(self, reason: str, message: str) -> None:
        """Say that the declared spec is not in effect yet, and that work on it goes on by itself."""
        self.true(_RECONCILING, reason, message)
        self.false(_STALLED, Reason.PROGRESSING, "")

    def stalled(self, reason: str, message: str) -> None:
        """Say that the declared spec is not in effect, and will not be until something is changed."""
        self.false(_RECONCILING, Reason.STALLED, "")
        self.true(_STALLED, reason, message)

    def at_rest(self, reason: str = Reason.UP_TO_DATE) -> None:
        """Say that there is nothing to do, and nothing that is in the way of it."""
        self.false(_RECONCILING, reason, "")
        self.false(_STALLED, reason, "")

    def _set(self, type_: str, status: ConditionStatus, reason: str, message: str) -> None:
        self._conditions = set_condition(
            self._conditions,
            str(type_),
            status,
            str(reason),
            message,
            generation=self._generation,
            now=self._now,
        )
