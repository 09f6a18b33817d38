"""A signal within this process that some runtime's desired state may have changed."""

import asyncio
import contextlib
from collections.abc import Iterator
from threading import Lock


class Changes:
    """Wakes long polls early; they look by themselves too, since other processes' changes are not seen."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def notify(self) -> None:
        """Wake everyone who waits; to be called from any thread, after a commit."""
        with self._lock:
            for event, loop in self._waiting.items():
                with contextlib.suppress(RuntimeError):  # its loop was closed while we stood here
                    loop.call_soon_threadsafe(event.set)

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[asyncio.Event]:
        """Give an event that ``notify`` sets, for as long as the context lasts."""
        event = asyncio.Event()
        with self._lock:
            self._waiting[event] = asyncio.get_running_loop()
        try:
            yield event
        finally:
            with self._lock:
                del self._waiting[event]
