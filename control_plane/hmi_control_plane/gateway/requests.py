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

from hmi_control_plane.auth import Identity
from hmi_control_plane.gateway.failures import InferenceFailed, invalid_field, malformed_json
from hmi_control_plane.http.validation_errors import first_problem, first_request_problem

Body = TypeVar("Body", bound=BaseModel)


def direct_route(
    read: Callable[[Request], Awaitable[BaseModel]], identify: Callable[[Request], Awaitable[Identity]]
) -> type[APIRoute]:
    """Return a route class for an endpoint that takes ``body``, ``identity`` and its path's parameters.

    Those of the path come as text; ``read`` gives the body, of which nothing is read for an unknown caller.
    """

    class DirectRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            endpoint: Callable[..., Awaitable[Response]] = self.endpoint

            async def answer(request: Request) -> Response:
                identity = await identify(request)
                body = await read(request)
                return await endpoint(**request.path_params, body=body, identity=identity)

            return answer

    return DirectRoute


def json_reader(body_type: type[Body]) -> Callable[[Request], Awaitable[Body]]:
    """Return a reader of bodies that are JSON whatever their Content-Type says.

    Nothing else is taken here, and curl's -d calls all it sends a form.
    """

    async def read(request: Request) -> Body:
        return parsed(await read_body(request), body_type)

    return read


async def read_body(request: Request) -> bytes:
    """Return the body's bytes; raises InferenceFailed (400) when there are none, or not all."""
    try:
        raw = await request.body()
    except ClientDisconnect as error:
        raise InferenceFailed(400, "BodyCutOff", "The body ended too early.") from error
    if not raw:
        raise InferenceFailed(400, "InvalidField", "The body is missing.")
    return raw


def parsed(raw: bytes, body_type: type[Body]) -> Body:
    """Return JSON as a ``body_type``; raises InferenceFailed (400) for what does not fit."""
    try:
        given = json.loads(raw)
    except (ValueError, RecursionError) as error:  # not only malformed: no Unicode, or nested too deep
        raise malformed_json() from error
    try:
        return body_type.model_validate(given)
    except ValidationError as error:
        raise invalid_field(first_problem(error.errors(), given)) from error


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


class InferenceRoute(APIRoute):
    """A route that says 400 to fields that do not fit, as OpenAI does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, wrapped."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise invalid_field(first_request_problem(error)) from error

        return answer
