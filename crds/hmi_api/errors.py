"""Errors for users, each with a CamelCase reason and a message that says what to do.

The reason is chosen where the cause is known (in a training run, a manifest, a runtime) and is copied
unchanged into the condition or the HTTP answer that reports the error.
"""

from typing import Any

from pydantic import BaseModel


class HmiError(Exception):
    """Base class of all errors for users.

    ``reason`` is CamelCase and stable; ``message`` is a sentence that says what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


class InvalidInput(HmiError):
    """The user's input is wrong; repeating the request will not help."""


class NotReady(HmiError):
    """Something that is needed is not available yet; repeating the request later will help."""


class Damaged(HmiError):
    """Stored bytes differ from the published ones."""


class ErrorDetail(BaseModel):
    """The inner object of an error in OpenAI's format."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """An error in OpenAI's format: the body of every answer that is not a success."""

    error: ErrorDetail


def error_body(
    message: str, type_: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return the JSON body of an error answer."""
    return ErrorBody(error=ErrorDetail(message=message, type=type_, param=param, code=code)).model_dump()
