"""The check of a request's credential before anything else of it is looked at."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from hmi_api.errors import HmiError
from hmi_control_plane.errors import hmi_error_response

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
