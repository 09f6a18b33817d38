"""Strings that can be sent on: JSON may bring halves of surrogate pairs, which no UTF-8 can hold."""

from typing import Annotated

from pydantic import AfterValidator


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


WellFormed = Annotated[str, AfterValidator(_well_formed)]
"""A string that UTF-8 can hold."""
