"""The door of a runtime's internal API: only gateways pass, and before anything of a body is read."""

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from hmi_api.errors import NotReady, error_body
from hmi_api.security.internal_auth import CallerCheck, Role

_PREFIX = "/internal/"


class InternalDoor:
    """ASGI middleware: what is under ``/internal`` is for gateways; 401, 403 or 503 for everybody else."""

    def __init__(self, app: ASGIApp, check: CallerCheck) -> None:
        self._app = app
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on when its caller may call."""
        if scope["type"] == "http" and scope["path"].startswith(_PREFIX):
            refusal = await self._refusal(Headers(scope=scope).get("authorization", ""))
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _refusal(self, authorization: str) -> JSONResponse | None:
        scheme, _, token = authorization.partition(" ")
        try:
            caller = await self._check.caller(token.strip()) if scheme.lower() == "bearer" else None
        except NotReady as error:
            body = error_body(error.message, "server_error", code=error.reason)
            return JSONResponse(body, 503, {"Retry-After": "1"})
        if caller is None:
            body = error_body(
                "The internal token is missing or wrong.", "authentication_error", code="InvalidToken"
            )
            return JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})
        if not caller.may_act_as((Role.GATEWAY,)):
            message = f"This call is not for callers in the role {caller.role}."
            return JSONResponse(error_body(message, "permission_error", code="RoleNotAllowed"), 403)
        return None
