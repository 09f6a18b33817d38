"""Cursors: opaque text that says where the next page of a list begins."""

import base64
import binascii
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from hmi_api.errors import InvalidInput
from hmi_api.internal.storable import Text

T = TypeVar("T")

LONGEST_CURSOR = 1_000
"""Characters of a cursor."""
_LONGEST_KEY = 400

KeyText = Annotated[Text, Field(max_length=_LONGEST_KEY)]
"""A name or an id in a cursor."""
TEXT_CURSOR: TypeAdapter[str] = TypeAdapter(KeyText)
"""Cursors of lists that are in the order of a text column."""
NUMBER_CURSOR: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=0, le=2**63 - 1)])
"""Cursors of lists that are in the order of a number column."""


def encode_cursor(key: Any) -> str:
    """Return the cursor for the items after ``key``, a value that JSON can hold."""
    return base64.urlsafe_b64encode(TypeAdapter(Any).dump_json(key)).decode().rstrip("=")


def decode_cursor(cursor: str | None, kind: TypeAdapter[T]) -> T | None:
    """Return the key in ``cursor``, None for none.

    A cursor comes from outside: what it holds must be of ``kind`` and something that a database can compare.
    Raises ``InvalidInput`` InvalidCursor for anything else.
    """
    if cursor is None:
        return None
    try:
        if len(cursor) > LONGEST_CURSOR:
            raise ValueError("too long")
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return kind.validate_json(text, strict=True)
    except (ValueError, binascii.Error, ValidationError) as error:
        raise InvalidInput(
            "InvalidCursor", "Use next_cursor of the previous page, unchanged, or leave it out."
        ) from error
