"""The database: engines for SQLite and PostgreSQL, and one way to read and one to write."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.orm import Session, sessionmaker

_BEGIN = "hmi_begin"
_BUSY_TIMEOUT_MS = 15_000
_CONNECT_SECONDS = "5"
_UNANSWERED_MS = "10000"
# With a pool of 10: more than the server has threads, so that none of them waits for a connection.
_OVERFLOW = 40


def normalised_url(url: str) -> str:
    """Return ``url`` with the driver this project uses: psycopg 3 for any PostgreSQL address."""
    parsed = make_url(url)
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed.render_as_string(hide_password=False)


class Database:
    """A catalog database. Sessions are short: one per request, opened by ``read`` or ``write``.

    ``url`` is an SQLAlchemy address (``sqlite:///path`` or ``postgresql://...``). On SQLite a writer takes
    the write lock at its start (``BEGIN IMMEDIATE``): a transaction that reads first and writes later would
    fail at once, whatever the busy timeout, if another wrote in between.
    """

    def __init__(self, url: str, *, pool_size: int = 10, echo: bool = False) -> None:
        self.url = normalised_url(url)
        self.engine = _create_engine(self.url, pool_size=pool_size, echo=echo)
        self._readers = sessionmaker(self.engine, expire_on_commit=False)
        self._writers = sessionmaker(
            self.engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"}), expire_on_commit=False
        )

    @property
    def is_sqlite(self) -> bool:
        """Say whether this is SQLite, which has one writer at a time."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a session for reading; whatever it changed is rolled back."""
        with self._readers() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a session in one write transaction: committed at the end, rolled back on an error."""
        with self._writers.begin() as session:
            yield session

    def ping(self) -> None:
        """Ask the database for an answer; raises sqlalchemy.exc.SQLAlchemyError when it gives none."""
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()


def _create_engine(url: str, *, pool_size: int, echo: bool) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(
            url,
            echo=echo,
            pool_size=pool_size,
            max_overflow=_OVERFLOW,
            pool_pre_ping=True,
            connect_args=_patience(url),
        )
    engine = create_engine(
        url,
        echo=echo,
        pool_size=pool_size,
        max_overflow=_OVERFLOW,
        connect_args={"timeout": _BUSY_TIMEOUT_MS / 1000},
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _patience(url: str) -> dict[str, str]:
    """Return libpq's limits on waiting for a server that vanished, less those that the address sets."""
    limits = {
        "connect_timeout": _CONNECT_SECONDS,
        "tcp_user_timeout": _UNANSWERED_MS,
        "keepalives_idle": "10",
    }
    return {name: value for name, value in limits.items() if name not in make_url(url).query}


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # Without this, the driver would begin transactions by itself, and only before writes.
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",  # an event acknowledged must survive a power cut
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))
