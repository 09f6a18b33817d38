"""Serving an application on a thread over real HTTP, free ports, and waiting for something to happen."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

LIMIT = 120.0
"""Seconds until something that should happen counts as failed: far more than it takes on a busy machine."""


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until ``condition`` is true; fail after ``LIMIT``."""
    until = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < until, f"did not happen: {what}"
        time.sleep(0.01)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(app: Any, port: int = 0, **options: Any) -> Iterator[str]:
    """Serve an ASGI application; gives its address. ``port`` 0 takes a free one."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        config = uvicorn.Config(
            app,
            interface="asgi3",
            log_config=None,
            log_level="critical",
            timeout_keep_alive=60,  # longer than any client keeps a connection
            timeout_graceful_shutdown=2,
            **options,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
