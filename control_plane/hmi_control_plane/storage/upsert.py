"""Insert-or-leave and insert-or-replace, in the dialect of the database at hand."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from hmi_control_plane.storage.base import Base


def insert_missing(
    session: Session, table: type[Base], rows: Sequence[dict[str, Any]], keys: Sequence[str] | None = None
) -> None:
    """Insert ``rows``; one whose ``keys`` (the primary key when absent) are there already stays as it is."""
    if rows:
        statement = _insert(session, table).on_conflict_do_nothing(index_elements=keys or _primary_key(table))
        session.execute(statement, list(rows))


def insert_or_replace(session: Session, table: type[Base], rows: Sequence[dict[str, Any]]) -> None:
    """Insert ``rows``; one whose primary key is there takes the new values."""
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
