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
    body_type: type[BaseModel], identify: Callable[[Request], Awaitable[Identity]]
) -> type[APIRoute]:
    """Return a route class for an endpoint that takes ``body``, ``identity`` and its path's parameters.

    Those of the path come as text. The caller is known before anything of the body is read.
    """

    class DirectRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            endpoint: Callable[..., Awaitable[Response]] = self.endpoint

            async def answer(request: Request) -> Response:
                identity = await identify(request)
                body = await _read(request, body_type)
                return await endpoint(**request.path_params, body=body, identity=identity)

            return answer

    return DirectRoute


async def _read(request: Request, body_type: type[Body]) -> Body:
    """Return the body, validated; raises InferenceFailed (400) for what does not fit.

    It is JSON whatever its Content-Type says: nothing else is taken here, and curl's -d calls all it sends a
    form.
    """
    try:
        raw = await request.body()
    except ClientDisconnect as error:
        raise InferenceFailed(400, "BodyCutOff", "The body ended too early.") from error
    if not raw:
        raise InferenceFailed(400, "InvalidField", "The body is missing.")
    try:
        given = json.loads(raw)
    except (ValueError, RecursionError) as error:  # not only malformed: no Unicode, or nested too deep
        raise malformed_json() from error
    try:
        return body_type.model_validate(given)
    except ValidationError as error:
        raise invalid_field(first_problem(error.errors(), given)) from error
