"""Strings that can be sent on: JSON may bring halves of surrogate pairs, which no UTF-8 can hold."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field


def is_well_formed(text: str) -> bool:
    """Say whether UTF-8 can hold ``text``."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _well_formed(text: str) -> str:
    if not is_well_formed(text):
        raise ValueError("the text holds half of a surrogate pair and is no valid Unicode")
    return text


WELL_FORMED = AfterValidator(_well_formed)
"""Refuses a string that UTF-8 cannot hold. A limit on its length goes before it, or pydantic counts items."""

WellFormed = Annotated[str, WELL_FORMED]
"""A string that UTF-8 can hold."""

ModelName = Annotated[str, Field(max_length=127), WELL_FORMED]
"""What may name a model: ``adapter`` or ``tenant/adapter``."""

FIRST_FAULT: Any = Field(fail_fast=True)
"""Ends the check of a list at its first wrong item: to tell of a million would stop the event loop."""
