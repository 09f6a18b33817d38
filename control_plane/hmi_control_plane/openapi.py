"""The API's description: all of it for administrators, the tenant's part for a tenant."""

import json
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import SecretStr

from hmi_control_plane.auth import Authenticator, require_token
from hmi_control_plane.errors import Unauthorized

PATH = "/openapi.json"
NOT_FOR_TENANTS = ("/admin/", "/internal/", "/apis/")
"""Where paths begin that a tenant's key does not open."""
_REFERENCE = "#/components/"
_SECURITY = "securitySchemes"  # named by requirements, not referred to


def build(
    app: FastAPI, authenticator: Authenticator, admin_key: SecretStr | None, *, needs_key: bool
) -> APIRouter:
    """Return ``/openapi.json`` and ``/docs``.

    With a tenant's key they show what that key opens; with the admin key all that the process serves, and so
    without a key where none is needed. Raise Unauthorized (401) where one is.
    """
    router = APIRouter(include_in_schema=False)
    is_admin = require_token(admin_key, "admin key") if admin_key is not None else None

    async def is_for_tenant(request: Request) -> bool:
        """Say whether a tenant asks."""
        if is_admin is not None:
            try:
                await is_admin(request)
            except Unauthorized:
                pass
            else:
                return False
        try:
            await authenticator.tenant_from_key(request)
        except Unauthorized:
            if needs_key:
                raise
            return False
        return True

    @router.get(PATH)
    async def describe(request: Request) -> JSONResponse:
        """Return the description for whoever asks."""
        whole = app.openapi()
        return JSONResponse(tenants_part(whole) if await is_for_tenant(request) else whole)

    @router.get("/docs")
    async def page(request: Request) -> HTMLResponse:
        """Return the page that shows it."""
        await is_for_tenant(request)
        return get_swagger_ui_html(openapi_url=PATH, title=app.title)

    return router


def tenants_part(whole: dict[str, Any]) -> dict[str, Any]:
    """Return a description with a tenant's paths alone, and with the components that these use."""
    paths = {path: item for path, item in whole["paths"].items() if not path.startswith(NOT_FOR_TENANTS)}
    components = whole.get("components", {})
    used: set[tuple[str, str]] = set()
    waiting: list[Any] = [paths]
    while waiting:
        for kind, name in _references(waiting.pop()):
            if (kind, name) not in used:
                used.add((kind, name))
                waiting.append(components.get(kind, {}).get(name))
    kept = {
        kind: {name: item for name, item in items.items() if (kind, name) in used or kind == _SECURITY}
        for kind, items in components.items()
    }
    return {**whole, "paths": paths, "components": kept}


def _references(item: Any) -> Iterator[tuple[str, str]]:
    """Give kind and name of each component that is referred to within."""
    for text in json.dumps(item).split(f'"$ref": "{_REFERENCE}')[1:]:
        kind, _, name = text.partition('"')[0].partition("/")
        yield kind, name
