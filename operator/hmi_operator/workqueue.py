"""The controller's work queue, as in client-go: a resource is queued once and processed once at a time."""

import asyncio
from collections import OrderedDict

from hmi_operator.ports import ResourceRef

TIMER_SHARE = 8
"""While both kinds wait, one resource in so many is one whose timer fired."""


class WorkQueue:
    """A queue of resources, deduplicated, with timers to requeue them.

    First in, first out; but a resource with an event precedes one whose timer fired, except for one place in
    ``TIMER_SHARE``. For use in one event loop.
    """

    def __init__(self) -> None:
        self._tokens: asyncio.Queue[bool] = asyncio.Queue()
        """True for each queued resource, False after the shutdown."""
        self._by_event: OrderedDict[ResourceRef, None] = OrderedDict()
        self._by_timer: OrderedDict[ResourceRef, None] = OrderedDict()
        self._processing: set[ResourceRef] = set()
        self._dirty: set[ResourceRef] = set()
        """Added while they are processed."""
        self._timers: dict[ResourceRef, asyncio.TimerHandle] = {}
        self._taken = 0
        self._shut_down = False

    def __len__(self) -> int:
        return len(self._by_event) + len(self._by_timer)

    def add(self, ref: ResourceRef) -> None:
        """Queue a resource; if it is being processed, queue it when that is done."""
        timer = self._timers.pop(ref, None)
        if timer is not None:
            timer.cancel()
        if ref in self._processing:
            self._dirty.add(ref)
        elif ref in self._by_timer:
            del self._by_timer[ref]
            self._by_event[ref] = None
        elif ref not in self._by_event and not self._shut_down:
            self._by_event[ref] = None
            self._tokens.put_nowait(True)

    async def get(self) -> ResourceRef | None:
        """Wait for the next resource; None after the shutdown. Call ``done`` when it is processed."""
        if self._shut_down or not await self._tokens.get() or self._shut_down:
            self._tokens.put_nowait(False)  # for the other waiters
            return None
        self._taken += 1
        timer_first = self._taken % TIMER_SHARE == 0
        queue = self._by_timer if self._by_timer and (timer_first or not self._by_event) else self._by_event
        ref, _ = queue.popitem(last=False)
        self._processing.add(ref)
        return ref

    def done(self, ref: ResourceRef, requeue_after: float | None) -> None:
        """Finish a resource: queue it again now if it was added meanwhile, else after so many seconds."""
        self._processing.discard(ref)
        if ref in self._dirty or requeue_after == 0:
            self._dirty.discard(ref)
            self.add(ref)
        elif requeue_after is not None and not self._shut_down:
            loop = asyncio.get_running_loop()
            self._timers[ref] = loop.call_later(requeue_after, self._requeue, ref)

    def shut_down(self) -> None:
        """Stop: ``get`` returns None from now on."""
        self._shut_down = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._tokens.put_nowait(False)

    def _requeue(self, ref: ResourceRef) -> None:
        """Queue a resource when its timer fires; it is neither queued nor processed."""
        del self._timers[ref]
        self._by_timer[ref] = None
        self._tokens.put_nowait(True)
