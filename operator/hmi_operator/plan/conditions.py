"""Writing a status's conditions: one generation and one moment for all of a plan."""

from collections.abc import Sequence
from datetime import UTC, datetime

from hmi_api.conditions import Condition, ConditionStatus, find_condition, set_condition


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
        """Say that a step is done."""
        self._set(type_, ConditionStatus.TRUE, reason, message)

    def false(self, type_: str, reason: str, message: str) -> None:
        """Say that a step cannot be done as things stand."""
        self._set(type_, ConditionStatus.FALSE, reason, message)

    def unknown(self, type_: str, reason: str, message: str = "") -> None:
        """Say that a step is under way or not reached."""
        self._set(type_, ConditionStatus.UNKNOWN, reason, message)

    def not_ready(self, types: Sequence[str]) -> None:
        """Say that the resource is not Ready, for the cause that the first of ``types`` not True gives."""
        for type_ in types:
            condition = find_condition(self._conditions, type_)
            if condition is not None and condition.status != ConditionStatus.TRUE:
                self.false("Ready", condition.reason, condition.message)
                return

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
