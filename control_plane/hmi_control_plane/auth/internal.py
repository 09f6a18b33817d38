"""The door of the internal API: who calls, in which role, before anything of the body is read."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute

from hmi_api.security.internal_auth import Caller, CallerCheck, Role
from hmi_control_plane.auth.tokens import bearer
from hmi_control_plane.errors import Forbidden, Unauthorized


class Door:
    """Makes routes that only callers in certain roles pass."""

    def __init__(self, check: CallerCheck) -> None:
        self._check = check

    def only(self, *roles: Role) -> type[APIRoute]:
        """Return a route class for routes that callers in one of ``roles`` may call.

        FastAPI reads the body before it runs dependencies, and an internal body may be long; so the caller is
        checked around all of that. Answers 401 to nobody we know, 403 to another role.
        """
        admit = self._admit

        class GuardedRoute(APIRoute):
            def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                handle = super().get_route_handler()

                async def answer(request: Request) -> Response:
                    request.state.caller = await admit(request, roles)
                    return await handle(request)

                return answer

        return GuardedRoute

    async def _admit(self, request: Request, roles: tuple[Role, ...]) -> Caller:
        token = bearer(request)
        caller = await self._check.caller(token) if token is not None else None
        if caller is None:
            raise Unauthorized("InvalidToken", "Send the internal token as Authorization: Bearer.")
        if not caller.may_act_as(roles):
            raise Forbidden("RoleNotAllowed", f"This call is not for callers in the role {caller.role}.")
        return caller


def admitted_caller(request: Request) -> Caller:
    """Return who was let in, as a FastAPI dependency."""
    caller: Caller = request.state.caller
    return caller


AdmittedCaller = Annotated[Caller, Depends(admitted_caller)]
"""A parameter of a guarded route: who was let in."""
