"""How the gateway reads requests: routes that bypass FastAPI's general path, and the types of their strings.

FastAPI documents a direct route from its endpoint's signature and finds it by its path. Solving dependencies
and validating the general way, as it would in between, costs more than everything else the gateway does.
"""

import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, Field, ValidationError
from starlette.requests import ClientDisconnect

from hmi_control_plane.auth.authenticator import Identity
from hmi_control_plane.gateway.failures import InferenceFailed, invalid_field, malformed_json
from hmi_control_plane.http.validation_errors import first_error, first_request_error

Body = TypeVar("Body", bound=BaseModel)


def direct_route(
    read: Callable[[Request], Awaitable[BaseModel]], identify: Callable[[Request], Awaitable[Identity]]
) -> type[APIRoute]:
    """Return a route class for an endpoint with the parameters ``body``, ``identity`` and those of its path.

    Path parameters are passed as text. ``read`` returns the body; it is called only for authenticated
    callers.
    """

    class DirectRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            endpoint: Callable[..., Awaitable[Response]] = self.endpoint

            async def handle_request(request: Request) -> Response:
                identity = await identify(request)
                body = await read(request)
                return await endpoint(**request.path_params, body=body, identity=identity)

            return handle_request

    return DirectRoute


def json_reader(body_type: type[Body]) -> Callable[[Request], Awaitable[Body]]:
    """Return a reader of JSON bodies with any Content-Type: ``curl -d`` sends JSON as a form's."""

    async def read(request: Request) -> Body:
        return parse_body(await read_body(request), body_type)

    return read


async def read_body(request: Request) -> bytes:
    """Return the body. Raise InferenceFailed (400) if it is empty or incomplete."""
    try:
        raw = await request.body()
    except ClientDisconnect as error:
        raise InferenceFailed(400, "BodyCutOff", "The body ended too early.") from error
    if not raw:
        raise InferenceFailed(400, "InvalidField", "The body is missing.")
    return raw


def parse_body(raw: bytes, body_type: type[Body]) -> Body:
    """Return JSON as a ``body_type``. Raise InferenceFailed (400) if it is invalid."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:  # malformed, not Unicode, or nested too deeply
        raise malformed_json() from error
    try:
        return body_type.model_validate(value)
    except ValidationError as error:
        raise invalid_field(first_error(error.errors(), value)) from error


def is_valid_unicode(text: str) -> bool:
    """Return whether ``text`` can be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _require_valid_unicode(text: str) -> str:
    if not is_valid_unicode(text):
        raise ValueError("the text has a lone surrogate and is not valid Unicode")
    return text


VALID_UNICODE = AfterValidator(_require_valid_unicode)
"""Refuses a string with lone surrogates. Put a limit on the length before it, or pydantic counts items."""
UnicodeText = Annotated[str, VALID_UNICODE]
"""A string that can be encoded as UTF-8."""
ModelName = Annotated[str, Field(max_length=127), VALID_UNICODE]
"""The name of a model: ``adapter`` or ``tenant/adapter``."""
STOP_AT_FIRST_ERROR: Any = Field(fail_fast=True)
"""Stops the validation of a list at its first invalid item: a million errors would block the event loop."""


class InferenceRoute(APIRoute):
    """A route that answers 400 to invalid fields, as OpenAI does, instead of 422."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler with its validation errors converted."""
        handle = super().get_route_handler()

        async def handle_request(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise invalid_field(first_request_error(error)) from error

        return handle_request
