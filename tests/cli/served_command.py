"""The command line against a real server, and the store behind the server."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from hmi_cli.system.home import HomeFolder
from hmi_operator.embedded import FileResourceStore

Run = Callable[..., tuple[int, str, str]]


@dataclass(frozen=True)
class Served:
    """A server in a thread of its own, and the store behind it."""

    home: HomeFolder
    url: str
    store: FileResourceStore
    loop: asyncio.AbstractEventLoop

    def do(self, change: Coroutine[Any, Any, Any]) -> Any:
        """Do in the server's loop what the reconciler would do there."""
        return asyncio.run_coroutine_threadsafe(change, self.loop).result(10)
