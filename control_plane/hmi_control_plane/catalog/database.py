"""The database: engines for SQLite and PostgreSQL, transactions, advisory locks and upserts."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import IntEnum, unique
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, sessionmaker

from hmi_api.internal.retry import RetryPolicy
from hmi_control_plane.catalog.tables.columns import Base

_BEGIN = "hmi_begin"
_BUSY_TIMEOUT_MS = 15_000
_SQLITE_BUSY = RetryPolicy(first_wait=0.005, longest_wait=0.1, patience=_BUSY_TIMEOUT_MS / 1000)
_CONNECT_SECONDS = "5"
_UNANSWERED_MS = "10000"
# Together more than the server has threads, so that no thread waits for a connection.
_POOL_SIZE = 10
_MAX_OVERFLOW = 40


@unique
class AdvisoryLock(IntEnum):
    """The PostgreSQL advisory locks of the catalog. Each value belongs to one purpose."""

    PLACEMENT = 0x484D49
    """Changes of placements."""
    BILLING = 0x484D4A
    """Changes of prices and invoices."""
    WINDOW_COUNTS = 0x484D4B
    """Merging of runtimes' reports into the window counts."""
    MIGRATION = 0x484D494D
    """Schema migrations."""


def acquire_lock(session: Session | Connection, lock: AdvisoryLock) -> None:
    """Wait for ``lock`` and keep it until the transaction ends.

    Does nothing on SQLite, where a write transaction has the whole database to itself.
    """
    bind = session.get_bind() if isinstance(session, Session) else session
    if bind.dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": int(lock)})


def utc_now() -> datetime:
    """Return the current time, aware and in UTC."""
    return datetime.now(UTC)


def normalised_url(url: str) -> str:
    """Return ``url`` with the driver this project uses: psycopg 3 for any PostgreSQL address."""
    parsed = make_url(url)
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed.render_as_string(hide_password=False)


class Database:
    """A catalog database. Sessions are short: one per request, opened by ``read`` or ``write``.

    ``url`` is an SQLAlchemy address (``sqlite:///path`` or ``postgresql://...``). On SQLite a write
    transaction takes the write lock at its start (``BEGIN IMMEDIATE``). Otherwise a transaction that reads
    first and writes later would fail at once, whatever the busy timeout, if another one wrote in between.
    """

    def __init__(self, url: str) -> None:
        self.url = normalised_url(url)
        self.engine = _create_engine(self.url)
        self._readers = sessionmaker(self.engine, expire_on_commit=False)
        self._writers = sessionmaker(
            self.engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"}), expire_on_commit=False
        )

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a session for reading; changes are rolled back."""
        with self._readers() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a session in one write transaction: committed at the end, rolled back on an error."""
        with self._writers.begin() as session:
            yield session

    def ping(self) -> None:
        """Check that the database answers; raises sqlalchemy.exc.SQLAlchemyError when it does not."""
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()


def _create_engine(url: str) -> Engine:
    is_sqlite = url.startswith("sqlite")
    connect_args = {"timeout": _BUSY_TIMEOUT_MS / 1000} if is_sqlite else _libpq_timeouts(url)
    engine = create_engine(
        url,
        pool_size=_POOL_SIZE,
        max_overflow=_MAX_OVERFLOW,
        pool_pre_ping=not is_sqlite,
        connect_args=connect_args,
    )
    if is_sqlite:
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _libpq_timeouts(url: str) -> dict[str, str]:
    """Return libpq's timeouts for a server that does not answer, except those that ``url`` sets."""
    limits = {
        "connect_timeout": _CONNECT_SECONDS,
        "tcp_user_timeout": _UNANSWERED_MS,
        "keepalives_idle": "10",
    }
    return {name: value for name, value in limits.items() if name not in make_url(url).query}


def _configure_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # Without this, the driver would begin transactions by itself, and only before writes.
    connection.isolation_level = None
    # SQLite does not wait when several connections change a new file to WAL at once.
    _SQLITE_BUSY.run(lambda: connection.execute("PRAGMA journal_mode=WAL"), should_retry=_is_busy)
    for pragma in (
        "synchronous=FULL",  # an acknowledged event must survive a power cut
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_BUSY


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))


def insert_missing(
    session: Session, table: type[Base], rows: Sequence[dict[str, Any]], keys: Sequence[str] | None = None
) -> None:
    """Insert ``rows``; a row whose ``keys`` (default: the primary key) exist already is left unchanged."""
    if rows:
        statement = _insert(session, table).on_conflict_do_nothing(index_elements=keys or _primary_key(table))
        session.execute(statement, list(rows))


def insert_or_replace(session: Session, table: type[Base], rows: Sequence[dict[str, Any]]) -> None:
    """Insert ``rows``; a row whose primary key exists already takes the new values."""
    if not rows:
        return
    statement = _insert(session, table)
    key = _primary_key(table)
    values = {name: statement.excluded[name] for name in rows[0] if name not in key}
    session.execute(statement.on_conflict_do_update(index_elements=key, set_=values), list(rows))


def _primary_key(table: type[Base]) -> list[str]:
    return [column.name for column in inspect(table).primary_key]


def _insert(session: Session, table: type[Base]) -> postgresql.Insert | sqlite.Insert:
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)
