"""A route whose key and body are read here instead of by FastAPI, for what is asked most.

FastAPI documents it from its endpoint's signature and finds it by its path. What it would do between the two,
solving dependencies and validating in general, costs more than all that the gateway does.
"""

import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from hmi_control_plane.auth import Identity
from hmi_control_plane.fields import first_problem
from hmi_control_plane.gateway.failures import InferenceFailed, invalid_field, malformed_json

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
