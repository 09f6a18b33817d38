"""Telling those who watch the store what has changed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from hmi_api.resources.domain import Domain
from hmi_api.resources.task_adapter import TaskAdapter

_QUEUE_LIMIT = 10_000


class EventType(StrEnum):
    """What happened, in the words of a Kubernetes watch."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


@dataclass(frozen=True)
class Event:
    """One change of one resource."""

    type: EventType
    resource: Domain | TaskAdapter
    spec_changed: bool
    """False when only the status, or what holds the resource, has changed."""


class Watchers:
    """Those who are told of every event, in order."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Event], None]] = []

    def tell(self, event: Event) -> None:
        """Tell everyone; listeners must be quick and must not raise."""
        for listener in list(self._listeners):
            listener(event)

    @contextmanager
    def listening(self, listener: Callable[[Event], None]) -> Iterator[None]:
        """Call ``listener`` with every event while the block runs."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    @contextmanager
    def subscribed(self) -> Iterator[AsyncIterator[Event]]:
        """Give an iterator over every event from now on; it ends when its reader falls too far behind."""
        queue: asyncio.Queue[Event] = asyncio.Queue(_QUEUE_LIMIT)
        behind = asyncio.Event()

        def put(event: Event) -> None:
            if queue.full():
                behind.set()
            else:
                queue.put_nowait(event)

        async def read() -> AsyncIterator[Event]:
            while not (behind.is_set() and queue.empty()):
                yield await queue.get()

        with self.listening(put):
            yield read()
