"""Lists in pages: keyset pagination, so that a page costs the same wherever it begins."""

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from sqlalchemy import ColumnElement, Integer, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from hmi_api.errors import InvalidInput
from hmi_api.internal.storable import Text

T = TypeVar("T")

MAX_PAGE_ITEMS = 500
MAX_CURSOR_LENGTH = 1_000
"""In characters."""

KeyText = Annotated[Text, Field(max_length=400)]
"""A name or an id in a cursor."""
TEXT_CURSOR: TypeAdapter[str] = TypeAdapter(KeyText)
NUMBER_CURSOR: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=0, le=2**63 - 1)])


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items of a list; ``next_cursor`` requests the next page and is None on the last one."""

    items: list[T]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which page of a list: up to ``limit`` items after ``cursor``."""

    limit: int = MAX_PAGE_ITEMS
    cursor: str | None = None


def list_page(
    session: Session,
    table: type[T],
    key: InstrumentedAttribute[Any],
    page: PageRequest,
    *where: ColumnElement[bool],
    descending: bool = False,
    **equal: str | None,
) -> Page[T]:
    """Return a page of the rows of ``table``, in the order of the unique column ``key``.

    ``equal`` gives the values of columns; None matches any value. Raises InvalidInput (InvalidCursor).
    """
    wanted = {column: value for column, value in equal.items() if value is not None}
    query = select(table).where(*where).filter_by(**wanted)
    kind: TypeAdapter[Any] = NUMBER_CURSOR if isinstance(key.type, Integer) else TEXT_CURSOR
    last, limit = decode_cursor(page.cursor, kind), page.limit
    if last is not None:
        query = query.where(key < last if descending else key > last)
    # One row more than requested shows whether another page follows.
    rows = session.scalars(query.order_by(key.desc() if descending else key).limit(limit + 1)).all()
    items = list(rows[:limit])
    has_more = len(rows) > limit and bool(items)
    return Page(items, encode_cursor(getattr(items[-1], key.key)) if has_more else None)


def encode_cursor(key: Any) -> str:
    """Return the cursor for the items after ``key``, a value that JSON can represent."""
    return base64.urlsafe_b64encode(TypeAdapter(Any).dump_json(key)).decode().rstrip("=")


def decode_cursor(cursor: str | None, kind: TypeAdapter[T]) -> T | None:
    """Return the key in ``cursor``; None without a cursor.

    Clients may send anything as a cursor, so its content must match ``kind``, a type that the database can
    compare. Raises InvalidInput (InvalidCursor).
    """
    if cursor is None:
        return None
    try:
        if len(cursor) > MAX_CURSOR_LENGTH:
            raise ValueError("too long")
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return kind.validate_json(text, strict=True)
    except (ValueError, binascii.Error, ValidationError) as error:
        raise InvalidInput(
            "InvalidCursor", "Use next_cursor of the previous page, unchanged, or leave it out."
        ) from error
