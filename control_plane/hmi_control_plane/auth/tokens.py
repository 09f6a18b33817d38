"""Bearer tokens, and the check of the two that are settings: the internal token and the admin key."""

import hmac
from collections.abc import Awaitable, Callable

from fastapi import Request
from pydantic import SecretStr

from hmi_control_plane.errors import Unauthorized


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
