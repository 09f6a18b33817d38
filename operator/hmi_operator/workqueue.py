"""The line of resources that wait to be reconciled."""

import asyncio
from collections import OrderedDict

from hmi_operator.ports import ResourceRef

ROUTINE_SHARE = 8
"""Where both kinds wait, every so many-th place goes to a resource of which nothing was heard."""


class WorkQueue:
    """Each resource is at most once in line and never in two hands; timers put it in line later.

    First come, first served; but who is woken by news goes before who comes by a timer, except for one
    place in ``ROUTINE_SHARE``. To be used from one event loop.
    """

    def __init__(self) -> None:
        self._places: asyncio.Queue[bool] = asyncio.Queue()
        """True for each resource in line, False when the line is closed."""
        self._news: OrderedDict[ResourceRef, None] = OrderedDict()
        self._routine: OrderedDict[ResourceRef, None] = OrderedDict()
        self._in_hand: set[ResourceRef] = set()
        self._woken_in_hand: set[ResourceRef] = set()
        self._timers: dict[ResourceRef, asyncio.TimerHandle] = {}
        self._taken = 0
        self._closed = False

    @property
    def length(self) -> int:
        """How many resources stand in line."""
        return len(self._news) + len(self._routine)

    def add(self, ref: ResourceRef) -> None:
        """Put a resource in line for news of it; one that is in hand comes again afterwards."""
        timer = self._timers.pop(ref, None)
        if timer is not None:
            timer.cancel()
        if ref in self._in_hand:
            self._woken_in_hand.add(ref)
        elif ref in self._routine:
            del self._routine[ref]
            self._news[ref] = None
        elif ref not in self._news and not self._closed:
            self._news[ref] = None
            self._places.put_nowait(True)

    async def get(self) -> ResourceRef | None:
        """Wait for the next resource and take it in hand; None when the line is closed."""
        if self._closed or not await self._places.get() or self._closed:
            self._places.put_nowait(False)  # so that every other waiter hears it too
            return None
        self._taken += 1
        routine_first = self._taken % ROUTINE_SHARE == 0
        line = self._routine if self._routine and (routine_first or not self._news) else self._news
        ref, _ = line.popitem(last=False)
        self._in_hand.add(ref)
        return ref

    def done(self, ref: ResourceRef, again_after: float | None) -> None:
        """Put a resource down; it comes again at once if woken meanwhile, else after that many seconds."""
        self._in_hand.discard(ref)
        if ref in self._woken_in_hand or again_after == 0:
            self._woken_in_hand.discard(ref)
            self.add(ref)
        elif again_after is not None and not self._closed:
            loop = asyncio.get_running_loop()
            self._timers[ref] = loop.call_later(again_after, self._come, ref)

    def shut_down(self) -> None:
        """Let nobody take anything more."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._places.put_nowait(False)

    def _come(self, ref: ResourceRef) -> None:
        """Put a resource in line whose time has come; it is neither in line nor in hand."""
        del self._timers[ref]
        self._routine[ref] = None
        self._places.put_nowait(True)
