"""A small HTTP proxy on loopback that records its requests, and a client environment that uses it."""

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_CHUNK = 65_536


@dataclass
class RecordingProxy:
    """The requests to a proxy, as ``GET http://host/path`` or ``CONNECT host:443``."""

    url: str
    answers: dict[str, bytes] = field(default_factory=dict)
    """Response bodies by URL; 404 for all others."""
    tunnels: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Where ``CONNECT host:port`` leads, by that ``host:port``; 502 for all others."""
    requests: list[str] = field(default_factory=list)
    credentials: list[str | None] = field(default_factory=list)


@contextmanager
def recording_proxy() -> Iterator[RecordingProxy]:
    """Run a proxy while the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._record()
            body = proxy.answers.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

        do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 -- names of http.server's

        def do_CONNECT(self) -> None:
            self._record()
            target = proxy.tunnels.get(self.path)
            if target is None:
                self.send_error(502)
                return
            with socket.create_connection(target, timeout=10) as far:
                self.send_response(200)
                self.end_headers()
                self.wfile.flush()
                back = threading.Thread(target=_copy, args=(far, self.connection))
                back.start()
                _copy(self.connection, far)
                back.join()
            self.close_connection = True

        def _record(self) -> None:
            proxy.requests.append(f"{self.command} {self.path}")
            proxy.credentials.append(self.headers["Proxy-Authorization"])

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy = RecordingProxy(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def name_proxies(patch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    """Set these proxy variables in the environment, and no others."""
    for name in _VARIABLES:
        patch.delenv(name, raising=False)
        patch.delenv(name.upper(), raising=False)
    for name, value in variables.items():
        patch.setenv(name, value)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
