"""Pages of a list, by key: a page costs the same wherever it begins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from hmi_control_plane.catalog.cursors import encode_cursor

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
