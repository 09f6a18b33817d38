"""Kubernetes Events: each condition that turns is told once, as ``kubectl describe`` shows it."""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from hmi_api.errors import HmiError
from hmi_api.names import API_VERSION
from hmi_api.resources.common import CommonStatus
from hmi_api.resources.conditions import (
    SUMMARIES,
    Condition,
    ConditionStatus,
    DomainCondition,
    find_condition,
)
from hmi_api.resources.domain import Domain
from hmi_api.resources.reasons import Reason
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.kubernetes.api import KubeApi, Manifest
from hmi_operator.kubernetes.errors import Conflict
from hmi_operator.kubernetes.kinds import EVENTS

logger = logging.getLogger(__name__)

EventType = Literal["Normal", "Warning"]

REPORTER = "hmi.dev/operator"
REPEAT_SECONDS = 600.0
"""The same of the same resource within this time is counted in one Event."""
BURST, REFILL_SECONDS = 20, 15.0
"""Events of one resource at once, and the pace after that."""
LONGEST_QUEUE = 1000
_REMEMBERED = 4096
_LONGEST_NOTE = 1024
_REPEAT = SUMMARIES - {DomainCondition.READY}
_SILENT = {Reason.WAITING, Reason.STARTING, Reason.LOADING, Reason.NOT_LIMITED, Reason.NO_GATE}
_NO_FAULT = {
    Reason.RUNNING,
    Reason.QUEUED,
    Reason.SUSPENDED,
    Reason.PARENT_NOT_READY,
    Reason.DOMAIN_NOT_READY,
    Reason.TERMINATING,
    Reason.IN_USE,
}


@dataclass(frozen=True)
class Told:
    """What an Event says."""

    type: EventType
    reason: str
    note: str


def events_of(old: CommonStatus, new: CommonStatus) -> list[Told]:
    """Return what is told of a change of status: one Event for each cause of trouble, one of progress. Pure.

    A condition is told of when its status or its reason is another than before. What only waits for an
    earlier step is not told, and neither is what Ready repeats of another condition; Reconciling and Stalled
    only ever repeat. Of steps that went well at once, the last is told, which says so of the others.
    """
    turned = [
        condition
        for condition in new.conditions
        if condition.type not in _REPEAT and _has_turned(condition, old.conditions)
    ]
    told: dict[tuple[str, str], Told] = {}
    for condition in turned:
        cause = (condition.reason, condition.message)
        repeats = condition.type == "Ready" and _is_said_elsewhere(condition, new.conditions)
        if condition.reason in _SILENT or repeats or cause in told:
            continue
        note = condition.message or f"Condition {condition.type} is {condition.status}."
        told[cause] = Told(_type_of(condition), condition.reason, note[:_LONGEST_NOTE])
    last = next((one for one in reversed(told.values()) if one.type == "Normal"), None)
    return [one for one in told.values() if one.type != "Normal" or one is last]


def _has_turned(condition: Condition, before: Sequence[Condition]) -> bool:
    was = find_condition(before, condition.type)
    return was is None or (was.status, was.reason) != (condition.status, condition.reason)


def _is_said_elsewhere(ready: Condition, conditions: Sequence[Condition]) -> bool:
    return any(
        other.type not in SUMMARIES and (other.reason, other.message) == (ready.reason, ready.message)
        for other in conditions
    )


def _type_of(condition: Condition) -> EventType:
    if condition.reason == Reason.RETRYING:
        return "Warning"
    fault = condition.status == ConditionStatus.FALSE and condition.reason not in _NO_FAULT
    return "Warning" if fault else "Normal"


@dataclass
class _Series:
    """An Event that was made, and how often it was meant since."""

    name: str
    last: float
    count: int = 1


@dataclass
class _Allowance:
    """How many Events of a resource may be made now."""

    left: float
    at: float


class EventRecorder:
    """Sends Events on resources, best effort: what cannot be sent is logged and let go.

    ``record`` only puts in line, so that nothing waits for it; ``run`` sends until it is cancelled.
    ``instance`` names this replica.
    """

    def __init__(self, api: KubeApi, instance: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._instance = instance
        self._clock = clock
        self._line: deque[tuple[Domain | TaskAdapter, Told]] = deque(maxlen=LONGEST_QUEUE)
        self._waiting = asyncio.Event()
        self._series: OrderedDict[tuple[str, Told], _Series] = OrderedDict()
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()

    def record(self, resource: Domain | TaskAdapter, old: CommonStatus, new: CommonStatus) -> None:
        """Put in line what is to be told of a status that was written."""
        for told in events_of(old, new):
            if self._is_allowed(resource.metadata.uid):
                self._line.append((resource, told))
                self._waiting.set()

    async def run(self) -> None:
        """Send what is in line, one after another, until cancelled."""
        while True:
            await self._waiting.wait()
            while self._line:
                resource, told = self._line.popleft()
                try:
                    await self._send(resource, told)
                except HmiError as error:
                    logger.warning("an Event on %s was not taken: %s", resource.metadata.name, error)
                except Exception:
                    # What is only told must not stop the work that it tells of.
                    logger.exception("an Event on %s could not be sent", resource.metadata.name)
            self._waiting.clear()

    def _is_allowed(self, uid: str) -> bool:
        now = self._clock()
        known = self._allowances.pop(uid, None) or _Allowance(BURST, now)
        left = min(BURST, known.left + (now - known.at) / REFILL_SECONDS)
        allowed = left >= 1
        self._allowances[uid] = _Allowance(left - allowed, now)
        if len(self._allowances) > _REMEMBERED:
            self._allowances.popitem(last=False)
        return allowed

    async def _send(self, resource: Domain | TaskAdapter, told: Told) -> None:
        key, now = (resource.metadata.uid, told), self._clock()
        series = self._series.pop(key, None)
        if series is not None and now - series.last <= REPEAT_SECONDS:
            series.count, series.last = series.count + 1, now
            patch = {"series": {"count": series.count, "lastObservedTime": moment()}}
            namespace = resource.metadata.namespace
            if await self._api.merge_patch(EVENTS, namespace, series.name, patch) is not None:
                self._remember(key, series)
                return
        body = build_event(resource, told, self._instance)
        try:
            await self._api.create(EVENTS, resource.metadata.namespace, body)
        except Conflict:
            return  # an earlier try was done though its answer was lost
        self._remember(key, _Series(body["metadata"]["name"], now))

    def _remember(self, key: tuple[str, Told], series: _Series) -> None:
        self._series[key] = series
        if len(self._series) > _REMEMBERED:
            self._series.popitem(last=False)


def build_event(resource: Domain | TaskAdapter, told: Told, instance: str) -> Manifest:
    """Return the Event on a resource."""
    metadata, at = resource.metadata, moment()
    identity = f"{metadata.uid}/{told}/{at}"
    tail = hashlib.sha256(identity.encode()).hexdigest()[:16]
    regarding: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": resource.kind,
        "namespace": metadata.namespace,
        "name": metadata.name,
        "uid": metadata.uid,
        "resourceVersion": metadata.resource_version,
    }
    return {
        "apiVersion": EVENTS.api_version,
        "kind": EVENTS.kind,
        "metadata": {"name": f"{metadata.name}.{tail}", "namespace": metadata.namespace},
        "eventTime": at,
        "type": told.type,
        "reason": told.reason,
        "note": told.note,
        "action": "Reconcile",
        "regarding": {field: value for field, value in regarding.items() if value},
        "reportingController": REPORTER,
        "reportingInstance": instance,
    }


def moment() -> str:
    """Return the present moment as an Event has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
