"""The OpenAPI description and the Swagger page, with the paths that the caller's key opens.

The page's script and style come from the package ``fastapi-offline``: nothing is loaded from another host.
"""

import base64
import binascii
import json
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse, Response
from pydantic import SecretStr
from starlette.staticfiles import StaticFiles

from hmi_control_plane.auth.authenticator import Authenticator
from hmi_control_plane.auth.guards import require_token
from hmi_control_plane.http.errors import Unauthorized, error_response

PATH = "/openapi.json"
NOT_FOR_TENANTS = ("/admin/", "/internal/", "/apis/")
"""Prefixes of paths that a tenant's key does not open."""
PUBLIC = ("/healthz", "/readyz", "/v2", "/v2/", "/v2/health/live", "/v2/health/ready")
"""Paths that need no credential."""
_ASSETS = "/docs/assets"
_SCHEMES = {
    "tenantKey": "A tenant's API key, hmi_...",
    "adminKey": "The admin key.",
    "internalToken": "The internal token; on a cluster a service account's.",
}
_SCHEME_OF = {"/admin/": "adminKey", "/apis/": "adminKey", "/internal/": "internalToken"}
_SIGN_IN = 'Basic realm="HMI: any user name, and your key as the password"'
_REFERENCE = "#/components/"
_SECURITY = "securitySchemes"  # named by requirements, not referred to


def build_router(
    app: FastAPI, authenticator: Authenticator, admin_key: SecretStr | None, *, needs_key: bool
) -> APIRouter:
    """Return ``/openapi.json`` and ``/docs``.

    A tenant's key shows the tenant's paths; the admin key shows all paths of the process. Without a key they
    show all paths, or answer 401 if ``needs_key``.
    """
    router = APIRouter(include_in_schema=False)
    is_admin = require_token(admin_key, "admin key") if admin_key is not None else None

    _describe_credentials(app)
    app.mount(_ASSETS, StaticFiles(packages=[("fastapi_offline", "static")]))

    async def is_for_tenant(request: Request) -> bool:
        """Return whether the caller is a tenant."""
        request = _with_bearer(request)
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
        """Return the description for this caller."""
        whole = app.openapi()
        return JSONResponse(tenant_paths_only(whole) if await is_for_tenant(request) else whole)

    @router.get("/docs")
    async def page(request: Request) -> Response:
        """Return the Swagger page; a browser without a key gets a sign-in prompt."""
        try:
            await is_for_tenant(request)
        except Unauthorized as error:
            headers = {"WWW-Authenticate": _SIGN_IN}
            return error_response(request.url.path, 401, error.reason, error.message, headers=headers)
        return get_swagger_ui_html(
            openapi_url=PATH,
            title=app.title,
            swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{_ASSETS}/favicon.png",
        )

    return router


def _with_bearer(request: Request) -> Request:
    """Return ``request`` with the password of a browser's sign-in as its bearer token."""
    kind, _, coded = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return request
    try:
        key = base64.b64decode(coded, validate=True).partition(b":")[2]
    except binascii.Error:
        return request
    others = [(name, value) for name, value in request.scope["headers"] if name != b"authorization"]
    return Request({**request.scope, "headers": [*others, (b"authorization", b"Bearer " + key)]})


def _describe_credentials(app: FastAPI) -> None:
    """Add the credential of each operation to the description."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            whole = make()
            for path, item in whole["paths"].items():
                scheme = next(
                    (name for start, name in _SCHEME_OF.items() if path.startswith(start)), "tenantKey"
                )
                if path not in PUBLIC:
                    for operation in item.values():
                        operation["security"] = [{scheme: []}]
            whole["components"][_SECURITY] = {
                name: {"type": "http", "scheme": "bearer", "description": text}
                for name, text in _SCHEMES.items()
            }
            app.openapi_schema = whole
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI documents it


def tenant_paths_only(whole: dict[str, Any]) -> dict[str, Any]:
    """Return the description with only a tenant's paths and the components that they use."""
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
        kind: {name: item for name, item in items.items() if (kind, name) in used or name == "tenantKey"}
        for kind, items in components.items()
    }
    return {**whole, "paths": paths, "components": kept}


def _references(item: Any) -> Iterator[tuple[str, str]]:
    """Yield kind and name of each component that ``item`` refers to."""
    for text in json.dumps(item).split(f'"$ref": "{_REFERENCE}')[1:]:
        kind, _, name = text.partition('"')[0].partition("/")
        yield kind, name
