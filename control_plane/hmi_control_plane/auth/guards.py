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
    """Return a dependency that raises Unauthorized without the bearer token ``expected``.

    ``what`` names the token in the error message.
    """
    expected_bytes = expected.get_secret_value().encode()

    async def check(request: Request) -> None:
        shown = (bearer(request) or "").encode()
        if not hmac.compare_digest(shown, expected_bytes):
            raise Unauthorized(
                "InvalidToken", f"The {what} is missing or wrong; send it as Authorization: Bearer."
            )

    return check


IDENTITY = "identity"
"""Attribute of ``request.state`` with the tenant's identity."""


@dataclass(frozen=True, slots=True)
class GuardedPaths:
    """Path prefixes that need a credential, and its check.

    ``check`` raises HmiError for a missing or wrong credential. Its result is stored in the request's state.
    """

    prefixes: tuple[str, ...]
    check: Callable[[Request], Awaitable[Any]]


class CredentialMiddleware:
    """Answer 401 to requests for guarded paths without a valid credential, before anything else is checked.

    FastAPI would read and parse the body first and answer 400, 413 or 415 to unauthenticated callers. Under a
    guarded prefix only authenticated callers learn that a path does not exist.
    """

    def __init__(self, app: ASGIApp, guarded: Sequence[GuardedPaths]) -> None:
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


class RoleGuard:
    """Makes routes of the internal API that only callers in certain roles may call."""

    def __init__(self, authenticator: CallerAuthenticator) -> None:
        self._authenticator = authenticator

    def only(self, *roles: Role) -> type[APIRoute]:
        """Return a route class for routes that callers in one of ``roles`` may call.

        The caller is checked before the body is read: FastAPI runs dependencies after it, and an internal
        body may be large. Answers 401 to an unknown caller, 403 to another role.
        """
        authorize = self._authorize

        class GuardedRoute(APIRoute):
            def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                handle = super().get_route_handler()

                async def answer(request: Request) -> Response:
                    request.state.caller = await authorize(request, roles)
                    return await handle(request)

                return answer

        return GuardedRoute

    async def _authorize(self, request: Request, roles: tuple[Role, ...]) -> Caller:
        token = bearer(request)
        caller = await self._authenticator.authenticate(token) if token is not None else None
        if caller is None:
            raise Unauthorized(
                "InvalidToken", "The internal token is missing or wrong; send it as Authorization: Bearer."
            )
        if not caller.may_act_as(roles):
            raise Forbidden("RoleNotAllowed", f"Callers in the role {caller.role} may not call this.")
        return caller


def _authenticated_caller(request: Request) -> Caller:
    """Return the authenticated caller, as a FastAPI dependency."""
    caller: Caller = request.state.caller
    return caller


AdmittedCaller = Annotated[Caller, Depends(_authenticated_caller)]
"""Parameter of a guarded route: the authenticated caller."""
