"""Listening sockets, and the HTTP server for Prometheus metrics on its own port."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlsplit

ALL_ADDRESSES = "::"
"""Host that stands for every IPv4 and IPv6 address of the machine."""
_BACKLOG = 2048


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a TCP socket that listens on ``host`` and ``port`` (0: any free port).

    ``::`` accepts IPv4 connections too, where asyncio and uvicorn would accept IPv6 alone. It falls back to
    IPv4 on a machine without IPv6. Any other host is an address or a name of one family.

    Raises ``OSError`` when the address is in use or is not one of this machine's.
    """
    if host == ALL_ADDRESSES:
        if not socket.has_dualstack_ipv6():
            return socket.create_server(("0.0.0.0", port), backlog=_BACKLOG)  # noqa: S104
        return socket.create_server(
            (host, port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


PATH = "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' text format."""
_PATIENCE_SECONDS = 5.0
_POLL_SECONDS = 0.1


@contextlib.contextmanager
def serving_metrics(host: str, port: int | None, render: Callable[[], bytes]) -> Iterator[int | None]:
    """Answer ``GET /metrics`` with what ``render`` returns, in a thread, while the block runs.

    Yields the port, which the system chooses for port 0. With ``port`` None it serves nothing.
    One request is answered at a time, within 5 s each. Raises ``OSError`` when the port is taken.
    """
    if port is None:
        yield None
        return

    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE_SECONDS

        def do_GET(self) -> None:
            if urlsplit(self.path).path != PATH:
                self.send_error(404)
                return
            body = render()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    listener = listening_socket(host, port)
    server = HTTPServer(listener.getsockname()[:2], Handler, bind_and_activate=False)
    server.socket.close()  # the server's own, which listens on one address family only
    server.socket = listener
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_SECONDS,), name="metrics", daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
