"""Base class and value types of the internal API. Every value that passes them can be stored in the catalog.

PostgreSQL stores no NUL character in text or JSON, UTF-8 encodes no half of a surrogate pair, and an integer
column has a fixed width. Such a value is refused with a 4xx status: as a database error it would be a 5xx
status, which clients retry.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

LONGEST_MESSAGE = 4000
"""Characters of a message that are kept."""


class WireModel(BaseModel):
    """Base of types that travel between HMI's own parts: camelCase, unknown fields refused.

    ``model_validate`` also reads the attributes of an object, such as a row of the catalog.
    """

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, from_attributes=True
    )


def text_problem(text: str) -> str | None:
    """Return why ``text`` cannot be stored, as what it should do; None when it can."""
    if "\0" in text:
        return "contain no NUL character (U+0000)"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "contain no half of a surrogate pair"
    return None


def json_problem(value: Any, path: str = "") -> str | None:
    """Return what of a JSON value cannot be stored and why (``labels.0 should ...``), or None."""
    if isinstance(value, Mapping):
        # The message names the object, not the key: the key's text may be what cannot be stored.
        own = next((problem for key in value if (problem := text_problem(key))), None)
        if own:
            return f"a key of {path or 'the object'} should {own}"
        parts = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        parts = [(str(index), item) for index, item in enumerate(value)]
    else:
        problem = text_problem(value) if isinstance(value, str) else None
        if isinstance(value, float) and not math.isfinite(value):
            problem = "be a finite number"
        return f"{path or 'the value'} should {problem}" if problem else None
    found = (json_problem(item, f"{path}.{name}" if path else name) for name, item in parts)
    return next((problem for problem in found if problem), None)


def clean_text(value: str) -> str:
    """Return ``value`` as text that can be stored: escaped where it could not be, and cut to a limit."""
    storable = value.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
    cut = LONGEST_MESSAGE - 3
    return storable if len(storable) <= LONGEST_MESSAGE else f"{storable[:cut]}..."


def _check_text(value: str) -> str:
    problem = text_problem(value)
    if problem:
        raise PydanticCustomError("text_not_storable", "String should {problem}", {"problem": problem})
    return value


Text = Annotated[str, AfterValidator(_check_text)]
"""Text of any length."""
Message = Annotated[
    str, BeforeValidator(lambda value: clean_text(value) if isinstance(value, str) else value)
]
"""Text for people: escaped and cut instead of refused, so that the problem that it reports is not hidden."""
Uid = Annotated[Text, Field(max_length=64)]
Label = Annotated[Text, Field(max_length=63)]
ResourceKey = Annotated[Text, Field(max_length=127)]
"""``namespace/name``."""
DigestText = Annotated[Text, Field(max_length=80)]
"""``sha256:`` and 64 hexadecimal digits."""
Word = Annotated[Text, Field(max_length=100)]
"""A reason, a stage or the name of a metric."""
Count = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
"""A whole number of 32 bits; booleans are refused."""
LargeCount = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
"""A whole number of 64 bits, such as bytes; booleans are refused."""
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite number; booleans and text are refused."""
Metrics = Annotated[dict[Word, Finite], Field(max_length=100)]
"""Measured values by name."""
