"""Lists in pages: keyset pagination, so that a page costs the same wherever it begins."""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from sqlalchemy import Integer, Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from hmi_api.errors import InvalidInput
from hmi_api.internal.storable import Text

T = TypeVar("T")
R = TypeVar("R")

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

    def map(self, convert: Callable[[T], R]) -> "Page[R]":
        """Return the page with every item converted."""
        return Page([convert(item) for item in self.items], self.next_cursor)


def list_page(
    session: Session,
    query: Select[T],
    key: InstrumentedAttribute[Any],
    *,
    limit: int,
    cursor: str | None,
    descending: bool = False,
) -> Page[T]:
    """Return up to ``limit`` rows of ``query`` after ``cursor``, in the order of the unique column ``key``.

    Raises InvalidInput (InvalidCursor).
    """
    kind: TypeAdapter[Any] = NUMBER_CURSOR if isinstance(key.type, Integer) else TEXT_CURSOR
    last = decode_cursor(cursor, kind)
    if last is not None:
        query = query.where(key < last if descending else key > last)
    # One more row than asked for shows whether another page follows.
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
