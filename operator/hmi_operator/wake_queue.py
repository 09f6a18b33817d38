"""The line of resources that wait to be reconciled."""

import asyncio

from hmi_operator.ports import ResourceRef


class WakeQueue:
    """Each resource is at most once in line and never in two hands; timers put it in line later.

    To be used from one event loop.
    """

    def __init__(self) -> None:
        self._line: asyncio.Queue[ResourceRef | None] = asyncio.Queue()
        self._in_line: set[ResourceRef] = set()
        self._in_hand: set[ResourceRef] = set()
        self._woken_in_hand: set[ResourceRef] = set()
        self._timers: dict[ResourceRef, asyncio.TimerHandle] = {}
        self._closed = False

    @property
    def length(self) -> int:
        """How many resources stand in line."""
        return len(self._in_line)

    def wake(self, ref: ResourceRef) -> None:
        """Put a resource in line unless it stands there; one that is in hand comes again afterwards."""
        timer = self._timers.pop(ref, None)
        if timer is not None:
            timer.cancel()
        if ref in self._in_hand:
            self._woken_in_hand.add(ref)
        elif ref not in self._in_line and not self._closed:
            self._in_line.add(ref)
            self._line.put_nowait(ref)

    async def take(self) -> ResourceRef | None:
        """Wait for the next resource and take it in hand; None when the line is closed."""
        ref = None if self._closed else await self._line.get()
        if ref is None or self._closed:
            self._line.put_nowait(None)  # so that every other waiter hears it too
            return None
        self._in_line.discard(ref)
        self._in_hand.add(ref)
        return ref

    def done(self, ref: ResourceRef, again_after: float | None) -> None:
        """Put a resource down; it comes again at once if woken meanwhile, else after that many seconds."""
        self._in_hand.discard(ref)
        if ref in self._woken_in_hand:
            self._woken_in_hand.discard(ref)
            self.wake(ref)
        elif again_after is not None and not self._closed:
            loop = asyncio.get_running_loop()
            self._timers[ref] = loop.call_later(again_after, self.wake, ref)

    def close(self) -> None:
        """Let nobody take anything more."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._line.put_nowait(None)
