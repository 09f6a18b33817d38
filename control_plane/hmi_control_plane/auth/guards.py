"""Checks of credentials before a request is handled: bearer tokens, guarded paths, routes by role."""

import hmac
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from hmi_api.errors import HmiError
from hmi_api.security.internal_auth import Caller, CallerAuthenticator, Role
from hmi_control_plane.http.errors import Forbidden, Unauthorized, hmi_error_response


def bearer(request: Request) -> str | None:
    """Return the token of the Authorization header, or None."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def require_token(expected: SecretStr, what: str) -> Callable[[Request], Awaitable[None]]:
    """Return a dependency that lets only the bearer of ``expected`` pass; ``what`` names it in the error."""
    wanted = expected.get_secret_value().encode()

    async def check(request: Request) -> None:
        shown = (bearer(request) or "").encode()
        if not hmac.compare_digest(shown, wanted):
            raise Unauthorized("InvalidToken", f"Send the {what} as Authorization: Bearer.")

    return check


IDENTITY = "identity"
"""Where in ``request.state`` a tenant's identity stands."""


@dataclass(frozen=True, slots=True)
class Guarded:
    """Paths that need a credential: those that begin with a prefix, and how it is checked.

    ``check`` raises HmiError for a request that shows none that is right; what it returns is kept in the
    request's state.
    """

    prefixes: tuple[str, ...]
    check: Callable[[Request], Awaitable[Any]]


class CredentialMiddleware:
    """Answer 401 to requests for guarded paths without a right credential, whatever else is wrong with them.

    FastAPI reads and parses a body first, and would tell a stranger 400, 413 or 415. Below a guarded prefix
    only callers with a credential are told that a path does not exist.
    """

    def __init__(self, app: ASGIApp, guarded: Sequence[Guarded]) -> None:
        self._app = app
        self._guarded = tuple(guarded)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http":
            path = scope["path"]
            for one in self._guarded:
                if path.startswith(one.prefixes):
                    try:
                        identity = await one.check(Request(scope))
                    except HmiError as error:
                        await hmi_error_response(path, error)(scope, receive, send)
                        return
                    scope.setdefault("state", {})[IDENTITY] = identity
                    break
        await self._app(scope, receive, send)


class Door:
    """Makes routes that only callers in certain roles pass."""

    def __init__(self, authenticator: CallerAuthenticator) -> None:
        self._authenticator = authenticator

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
        caller = await self._authenticator.authenticate(token) if token is not None else None
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
