"""Every route: credentials come first, HEAD works like GET, Allow is complete, slow clients time out."""

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from hmi_control_plane.app import create_app
from hmi_control_plane.http import server as http_protocol
from hmi_control_plane.http.server import HeaderTimeoutProtocol
from hmi_control_plane.settings import Part, Settings

_PUBLIC = re.compile(r"/healthz|/readyz|/v2(/health/.*)?")
_TOO_LONG = b"[" * (2 << 20)


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """SQLite alone: none of this depends on the database."""
    return sqlite_url


def operations(app: FastAPI) -> list[tuple[str, str]]:
    """Return every documented operation that needs a credential, with invalid path parameters."""
    return [
        (method.upper(), re.sub(r"\{[^}]*\}", "%00no", path))
        for path, methods in app.openapi()["paths"].items()
        if not _PUBLIC.fullmatch(path)
        for method in methods
    ]


@pytest.mark.parametrize("part", list(Part))
@pytest.mark.parametrize("key", [None, "Bearer wrong", "Bearer hmi_0000000000000000_" + "0" * 64])
def test_requests_without_valid_credentials_get_401_before_any_other_error(
    settings: Settings, part: Part, key: str | None
) -> None:
    app = create_app(settings, part)
    headers = {"Content-Type": "application/json"} | ({"Authorization": key} if key else {})
    with TestClient(app, raise_server_exceptions=False) as client:
        for method, path in operations(app):
            for content in (b"", b"{", _TOO_LONG):
                for extra in ({}, {"Content-Encoding": "br"}, {"Content-Type": "text/plain"}):
                    answer = client.request(
                        method, f"{path}?limit=no", content=content, headers=headers | extra
                    )
                    assert answer.status_code == 401, (method, path, len(content), answer.text)
                    assert answer.headers["www-authenticate"] == "Bearer"
                    assert answer.headers["x-request-id"]


def test_unknown_paths_are_401_without_credentials(client: TestClient, cluster: Any) -> None:
    for path in ("/admin/v1/unknown", "/v1/unknown", "/v2/models/unknown/at/all/x"):
        assert client.get(path).status_code == 401
    admin = {"Authorization": "Bearer admin-key-of-the-tests"}
    assert client.get("/admin/v1/unknown", headers=admin).status_code == 404


def test_a_body_too_long_is_413_with_valid_credentials(client: TestClient) -> None:
    headers = {"Authorization": "Bearer admin-key-of-the-tests", "Content-Type": "application/json"}
    answer = client.post("/admin/v1/tenants", content=_TOO_LONG, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "BodyTooLarge")
    assert answer.headers["connection"] == "close"


ALLOWED = [
    ("DELETE", "/healthz", "HEAD, GET"),
    ("PUT", "/v2/health/live", "HEAD, GET"),
    ("PUT", "/admin/v1/tenants", "HEAD, GET, POST"),
    ("POST", "/admin/v1/tenants/acme", "HEAD, GET, PATCH, DELETE"),
    ("GET", "/classify", "POST"),
    ("HEAD", "/classify", "POST"),
    ("OPTIONS", "/admin/v1/prices", "HEAD, GET, PUT"),
]


@pytest.mark.parametrize(("method", "path", "allowed"), ALLOWED)
def test_allow_lists_every_method_of_a_path(
    client: TestClient, cluster: Any, method: str, path: str, allowed: str
) -> None:
    cluster.internal("PUT", "/tenants/acme")
    key = cluster.admin("POST", "/tenants/acme/keys", {"name": "test"})["key"]
    bearer = "admin-key-of-the-tests" if path.startswith("/admin") else key
    answer = client.request(method, path, headers={"Authorization": f"Bearer {bearer}"})
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2", "/metrics"]
)
def test_head_is_answered_as_get_without_a_body(client: TestClient, path: str) -> None:
    get, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_a_trailing_slash_is_not_redirected(client: TestClient) -> None:
    answer = client.get("/healthz/", headers={"Host": "elsewhere.example"}, follow_redirects=False)
    assert answer.status_code == 404


# --- over real connections: slow clients time out -----------------------------------------


@contextmanager
def served(app: FastAPI) -> Iterator[int]:
    """Serve with the HTTP protocol class of a process; yield the port."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, http=HeaderTimeoutProtocol, log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            until = time.monotonic() + 30
            while not server.started:
                assert time.monotonic() < until
                time.sleep(0.01)
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def answer_to(port: int, sent: bytes) -> bytes:
    """Return all bytes until the server closes the connection; fail after 20 s without any."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(sent)
        found = b""
        while piece := connection.recv(65536):
            found += piece
        return found


@pytest.fixture
def port(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A control plane that waits half a second for headers and bodies."""
    monkeypatch.setattr(http_protocol, "HEADER_SECONDS", 0.5)
    with served(create_app(settings.model_copy(update={"body_seconds": 0.5}))) as port:
        yield port


def request(method: str, path: str, *headers: str) -> bytes:
    """Return a request's first line and headers."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]
    return "\r\n".join(lines).encode()


ADMIN = "Authorization: Bearer admin-key-of-the-tests"
INTERNAL = "Authorization: Bearer internal-token-of-the-tests"
JSON = "Content-Type: application/json"


@pytest.mark.parametrize(
    "head",
    [
        request("POST", "/admin/v1/tenants", ADMIN, JSON, "Content-Length: 100"),
        request("POST", "/internal/v1/runs", INTERNAL, JSON, "Content-Length: 100"),
        request("POST", "/admin/v1/tenants", ADMIN, JSON, "Transfer-Encoding: chunked"),
    ],
)
def test_a_body_that_does_not_arrive_is_408_and_the_connection_closes(port: int, head: bytes) -> None:
    for begun in (head, head + (b'{"na' if b"Content-Length" in head else b'4\r\n{"na\r\n')):
        answer = answer_to(port, begun)
        assert answer.startswith(b"HTTP/1.1 408 "), answer
        assert b"BodyTooSlow" in answer
        assert b"connection: close" in answer.lower()


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /healthz HT",
        request("GET", "/healthz")[:-2],
        request("GET", "/healthz") + b"GET /healthz HTTP/1.1\r\nHos",
    ],
)
def test_headers_that_do_not_arrive_close_the_connection(port: int, begun: bytes) -> None:
    assert answer_to(port, begun).count(b"200 OK") == begun.count(b"\r\n\r\n")


def test_a_slow_unread_body_does_not_keep_the_connection_open(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request("GET", "/healthz", "Content-Length: 1000"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        until = time.monotonic() + 20
        try:
            while time.monotonic() < until:
                connection.sendall(b"x")
                time.sleep(0.05)
        except OSError:
            return
    raise AssertionError("the connection was kept")


def test_a_kept_connection_answers_several_requests(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for _ in range(3):
            connection.sendall(request("GET", "/healthz"))
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(0.3)  # together longer than headers may take
