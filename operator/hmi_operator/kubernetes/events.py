"""Kubernetes Events about conditions that change and about orphans, as ``kubectl describe`` shows them."""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal

from cachetools import LRUCache
from kubernetes.aio.client import EventsV1Event, V1ObjectMeta, V1ObjectReference

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
from hmi_api.resources.domain import DomainStatus, TableStatus
from hmi_api.resources.kinds import Resource
from hmi_api.resources.reasons import Reason
from hmi_operator.kubernetes.client import (
    MERGE_PATCH,
    ApiServerConflict,
    KubernetesClient,
    find,
    metadata_of,
    micro_time,
)
from hmi_operator.orphans import Orphan

logger = logging.getLogger(__name__)

EventType = Literal["Normal", "Warning"]

REPORTER = "hmi.dev/operator"
REPEAT_SECONDS = 600.0
"""Equal messages about one resource within this time are counted in one Event."""
BURST, REFILL_SECONDS = 20, 15.0
"""Events of one resource in a burst, and the seconds for each after that."""
LONGEST_QUEUE = 1000
RECENT = timedelta(minutes=10)
"""How old a table may be whose Event a new leader creates, if there is none."""
_REMEMBERED = 4096
_LONGEST_NOTE = 1024
_REPEAT = SUMMARIES - {DomainCondition.READY}
_SILENT = {
    Reason.WAITING,
    Reason.STARTING,
    Reason.LOADING,
    Reason.NOT_LIMITED,
    Reason.NO_GATE,
    Reason.REFRESH_WAITS,
    Reason.TABLE_REFRESHED,  # _table_events reports every refresh
    Reason.NO_REFRESH,
}
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
class EventMessage:
    """Type, reason and text of an Event."""

    type: EventType
    reason: str
    note: str
    once: bool = False
    """It says what happens once to a resource: an Event of it that exists already is not repeated."""


def events_of(old: CommonStatus, new: CommonStatus) -> list[EventMessage]:
    """Return the Events for a change of status: one for each problem, and one for progress. Pure.

    A condition creates an Event when its status or reason changed. Conditions that only wait for an earlier
    step create none, nor does Ready if it repeats another condition; Reconciling and Stalled always repeat.
    Of several steps that succeeded at once, only the last creates an Event.
    """
    changed = [
        condition
        for condition in new.conditions
        if condition.type not in _REPEAT and _has_changed(condition, old.conditions)
    ]
    messages: dict[tuple[str, str], EventMessage] = {}
    for condition in changed:
        cause = (condition.reason, condition.message)
        repeats = condition.type == "Ready" and _repeats_another(condition, new.conditions)
        if condition.reason in _SILENT or repeats or cause in messages:
            continue
        note = condition.message or f"Condition {condition.type} is {condition.status}."
        messages[cause] = EventMessage(_type_of(condition), condition.reason, note[:_LONGEST_NOTE])
    last = next((one for one in reversed(messages.values()) if one.type == "Normal"), None)
    steps = [one for one in messages.values() if one.type != "Normal" or one is last]
    return [*steps, *_table_events(old, new)]


def _table_events(old: CommonStatus, new: CommonStatus) -> list[EventMessage]:
    """Return the Event for a table that was refreshed or rolled back."""
    table = _newest_table(new)
    if table is None or not isinstance(old, DomainStatus):
        return []
    # The version may have been written before its table was known.
    known = _newest_table(old)
    before = known.version if known is not None else old.version
    return _table_event(table) if before is not None and table.version > before else []


def recent_table_events(status: CommonStatus, now: datetime) -> list[EventMessage]:
    """Return the Event for a table that was refreshed or rolled back in the last minutes. Pure.

    The operator that wrote the status may have ended before it created the Event.
    """
    table = _newest_table(status)
    return _table_event(table) if table is not None and _is_recent(table.created, now) else []


def _is_recent(created: str, now: datetime) -> bool:
    """Return whether a time in a status is recent; False for what no operator has written."""
    try:
        return datetime.fromisoformat(created) >= now - RECENT
    except (TypeError, ValueError):
        return False


def _newest_table(status: CommonStatus) -> TableStatus | None:
    refresh = status.refresh if isinstance(status, DomainStatus) else None
    return refresh.tables[0] if refresh is not None and refresh.tables else None


def _table_event(table: TableStatus) -> list[EventMessage]:
    if table.cause is None and table.restored is None:  # it was trained
        return []
    reason = Reason.TABLE_REFRESHED if table.restored is None else Reason.TABLE_RESTORED
    return [EventMessage("Normal", reason.value, table.sentence(), once=True)]


def _has_changed(condition: Condition, before: Sequence[Condition]) -> bool:
    was = find_condition(before, condition.type)
    return was is None or (was.status, was.reason) != (condition.status, condition.reason)


def _repeats_another(ready: Condition, conditions: Sequence[Condition]) -> bool:
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
    """An Event that was created, and how often it has occurred since."""

    name: str
    last: float
    count: int = 1


@dataclass
class _Allowance:
    """How many Events of a resource may be created now."""

    left: float
    at: float


class EventRecorder:
    """Creates Events, best effort: an Event that cannot be created is logged and dropped.

    ``record`` and ``record_orphan`` only enqueue, so that nothing waits for them; ``run`` creates the Events
    until it is cancelled. ``namespace`` and ``instance`` are this replica's namespace and pod.
    """

    def __init__(
        self,
        client: KubernetesClient,
        instance: str,
        *,
        namespace: str = "hmi-system",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = client.events
        self._instance = instance
        self._namespace = namespace
        self._clock = clock
        self._queue: deque[tuple[str, Callable[[], Awaitable[None]]]] = deque(maxlen=LONGEST_QUEUE)
        """Names of resources, and functions that create an Event on them."""
        self._waiting = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._series: LRUCache[tuple[str, EventMessage], _Series] = LRUCache(_REMEMBERED)
        self._allowances: LRUCache[str, _Allowance] = LRUCache(_REMEMBERED)

    def record(self, resource: Resource, old: CommonStatus, new: CommonStatus) -> None:
        """Enqueue the Events for a status that was written."""
        self._record(resource, events_of(old, new))

    def record_again(self, resource: Resource) -> None:
        """Enqueue what an earlier leader may not have created: the Event of a new table."""
        self._record(resource, recent_table_events(resource.status, datetime.now(UTC)))

    def _record(self, resource: Resource, messages: Sequence[EventMessage]) -> None:
        for message in messages:
            if self._is_allowed(resource.metadata.uid):
                self._enqueue(resource.metadata.name, partial(self._send, resource, message))

    def record_orphan(self, orphan: Orphan) -> None:
        """Enqueue an Event about a catalog record that was deleted because its object is gone."""
        self._enqueue(orphan.ref.name, partial(self._send_orphan, orphan))

    def _enqueue(self, name: str, send: Callable[[], Awaitable[None]]) -> None:
        self._queue.append((name, send))
        self._idle.clear()
        self._waiting.set()

    async def run(self) -> None:
        """Create the queued Events, one after another, until cancelled."""
        while True:
            await self._waiting.wait()
            while self._queue:
                await self._send_or_log(*self._queue.popleft())
            self._waiting.clear()
            self._idle.set()

    async def flush(self, seconds: float) -> None:
        """Wait until ``run`` has created the queued Events, at most ``seconds``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    async def _send_or_log(self, name: str, send: Callable[[], Awaitable[None]]) -> None:
        try:
            await send()
        except HmiError as error:
            logger.warning("an Event on %s was rejected: %s", name, error)
        except Exception:
            # An Event must not stop the work that it reports.
            logger.exception("an Event on %s could not be created", name)

    def _is_allowed(self, uid: str) -> bool:
        now = self._clock()
        known = self._allowances.get(uid) or _Allowance(BURST, now)
        left = min(BURST, known.left + (now - known.at) / REFILL_SECONDS)
        allowed = left >= 1
        self._allowances[uid] = _Allowance(left - allowed, now)
        return allowed

    async def _send(self, resource: Resource, message: EventMessage) -> None:
        key, now = (resource.metadata.uid, message), self._clock()
        namespace = resource.metadata.namespace
        series = self._series.get(key) if not message.once else None
        if series is not None and now - series.last <= REPEAT_SECONDS:
            series.count, series.last = series.count + 1, now
            repeated = {"series": {"count": series.count, "lastObservedTime": _now().isoformat()}}
            patched = self._api.patch_namespaced_event(
                series.name, namespace, repeated, _content_type=MERGE_PATCH
            )
            if await find(patched) is not None:
                return
        event = build_event(resource, message, self._instance)
        try:
            await self._api.create_namespaced_event(namespace, event)
        except ApiServerConflict:
            return  # an earlier attempt succeeded, although its answer was lost
        self._series[key] = _Series(str(metadata_of(event).name), now)

    async def _send_orphan(self, orphan: Orphan) -> None:
        """Create the Event on the object; on the operator's pod where the object's namespace is gone too."""
        ref = orphan.ref
        of_object = V1ObjectReference(
            api_version=API_VERSION, kind=ref.kind, namespace=ref.namespace, name=ref.name, uid=orphan.uid
        )
        of_operator = V1ObjectReference(
            api_version="v1", kind="Pod", namespace=self._namespace, name=self._instance
        )
        for namespace, regarding in ((ref.namespace, of_object), (self._namespace, of_operator)):
            event = build_orphan_event(orphan, regarding, self._instance)
            try:
                await self._api.create_namespaced_event(namespace, event)
            except ApiServerConflict:
                return  # an earlier attempt succeeded, although its answer was lost
            except HmiError as error:
                logger.info("an Event on %s was rejected in %s: %s", ref, namespace, error)
            else:
                return


def build_event(resource: Resource, message: EventMessage, instance: str) -> EventsV1Event:
    """Return an Event on a resource."""
    metadata = resource.metadata
    regarding = V1ObjectReference(
        api_version=API_VERSION,
        kind=resource.kind,
        namespace=metadata.namespace,
        name=metadata.name,
        uid=metadata.uid or None,
        resource_version=metadata.resource_version or None,
    )
    return _build(regarding, message, "Reconcile", instance)


def build_orphan_event(orphan: Orphan, regarding: V1ObjectReference, instance: str) -> EventsV1Event:
    """Return the Event that an orphan was deleted from the catalog."""
    note = (
        f"{orphan.ref} was deleted from the cluster while no finalizer of the operator was on it; "
        "its records in the catalog are deleted."
    )
    return _build(regarding, EventMessage("Normal", Reason.ORPHAN_ERASED.value, note), "Erase", instance)


def _build(regarding: V1ObjectReference, message: EventMessage, action: str, instance: str) -> EventsV1Event:
    now = _now()
    moment = "" if message.once else now
    tail = hashlib.sha256(f"{regarding.uid}/{message}/{moment}".encode()).hexdigest()[:16]
    return EventsV1Event(
        api_version="events.k8s.io/v1",
        kind="Event",
        metadata=V1ObjectMeta(name=f"{regarding.name}.{tail}", namespace=regarding.namespace),
        event_time=now,
        type=message.type,
        reason=message.reason,
        note=message.note,
        action=action,
        regarding=regarding,
        reporting_controller=REPORTER,
        reporting_instance=instance,
    )


def _now() -> datetime:
    return micro_time(datetime.now(UTC))
