"""Pages of a list, by key: a page costs the same wherever it begins."""

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from hmi_api.errors import InvalidInput

T = TypeVar("T")
R = TypeVar("R")

LARGEST_PAGE = 500


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items of a list; ``next_cursor`` asks for those after them and is None at the end."""

    items: list[T]
    next_cursor: str | None = None

    def map(self, convert: Callable[[T], R]) -> "Page[R]":
        """Return the page with every item converted."""
        return Page([convert(item) for item in self.items], self.next_cursor)


def page_of(rows: Sequence[T], limit: int, key: Callable[[T], str | int]) -> Page[T]:
    """Return the first ``limit`` of ``rows``, which were read one further to see whether more follow."""
    items = list(rows[:limit])
    more = len(rows) > limit
    return Page(items, encode_cursor(key(items[-1])) if more and items else None)


def encode_cursor(key: str | int) -> str:
    """Return the opaque cursor for the items after ``key``."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def decode_text_cursor(cursor: str | None) -> str | None:
    """Return the key in a cursor over text; raises InvalidInput for what is none."""
    key = _decode(cursor)
    if key is None or isinstance(key, str):
        return key
    raise _invalid()


def decode_number_cursor(cursor: str | None) -> int | None:
    """Return the key in a cursor over numbers; raises InvalidInput for what is none."""
    key = _decode(cursor)
    if key is None or (isinstance(key, int) and not isinstance(key, bool)):
        return key
    raise _invalid()


def _decode(cursor: str | None) -> object:
    if cursor is None:
        return None
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        key: object = json.loads(base64.urlsafe_b64decode(padded.encode()))
    except (ValueError, binascii.Error) as error:
        raise _invalid() from error
    return key


def _invalid() -> InvalidInput:
    return InvalidInput("InvalidCursor", "Use next_cursor of the previous page, unchanged, or leave it out.")
