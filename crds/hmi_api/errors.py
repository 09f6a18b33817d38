"""Errors that reach a user, each with a CamelCase reason and what to do about it.

A reason travels unchanged from where it was found (a training run, a manifest, a runtime) to the
condition in ``status`` or the body of an HTTP answer, so it is decided once, where the cause is known.
"""

from typing import Any

from pydantic import BaseModel


class HmiError(Exception):
    """Base of all errors that are meant for a user.

    ``reason`` is CamelCase and stable; ``message`` is a sentence that says what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


class InvalidInput(HmiError):
    """What the user declared or sent cannot work as it stands; trying again will not help."""


class NotReady(HmiError):
    """Something this needs is not there yet; trying again later will help."""


class Damaged(HmiError):
    """Stored bytes are not what they were when they were published."""


class ErrorDetail(BaseModel):
    """The inner object of an OpenAI-shaped error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """An OpenAI-shaped error, the body of every answer that is not a success."""

    error: ErrorDetail


def error_body(
    message: str, type_: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return the JSON body of an error answer."""
    return ErrorBody(error=ErrorDetail(message=message, type=type_, param=param, code=code)).model_dump()
