"""Serves an application on a thread, over real HTTP."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn


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
