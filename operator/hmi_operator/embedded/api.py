"""The resource API of the embedded system: paths, verbs and bodies of a Kubernetes API server.

Bodies are parsed in threads, within bounds, so that a large one does not block other requests.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute

from hmi_api.errors import InvalidInput
from hmi_api.names import API_VERSION, GROUP, PLURALS, VERSION, KindName, tenant_of
from hmi_api.resources.common import Namespace, check_tenant, dump
from hmi_api.resources.domain import Domain
from hmi_api.resources.kinds import Resource
from hmi_api.resources.manifests import parse_manifest
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_api.resources.yaml_reader import TOO_LARGE, Bounds, read_documents
from hmi_operator.admission import decide_admission
from hmi_operator.embedded import errors
from hmi_operator.embedded.store import FileResourceStore
from hmi_operator.planning import Environment
from hmi_operator.ports import ResourceRef

ResultT = TypeVar("ResultT")
MERGE_PATCH = "application/merge-patch+json"
MAX_BODY_BYTES = 3 * 1024 * 1024
"""The limit of an API server on an object."""
BODY_BOUNDS = Bounds(size=MAX_BODY_BYTES, values=100_000, documents=1)
READ_AT_ONCE = 2
"""Bodies that are parsed at the same time; this leaves threads for disk access."""
_KINDS: dict[str, KindName] = {plural: kind for kind, plural in PLURALS.items()}
_ROOT = f"/apis/{GROUP}/{VERSION}"
_NAMESPACED = _ROOT + "/namespaces/{namespace}/{plural}"


def _dry_run(request: Request) -> bool:
    return request.query_params.get("dryRun") == "All"


DryRun = Annotated[bool, Depends(_dry_run)]


class _StatusRoute(APIRoute):
    """Turns ``ResourceApiError`` into a Kubernetes ``Status``; the application handles other errors."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                response: Response = await handle(request)
            except errors.ResourceApiError as error:
                return JSONResponse(error.status(), error.code)
            return response

        return answer


def router(
    store: FileResourceStore, auth: Callable[..., Any], environment: Environment | None = None
) -> APIRouter:
    """Return the routes over ``store``; ``auth`` is a FastAPI dependency that authenticates.

    PATCH and PUT create an object or replace what was applied (status stays), POST creates only; bodies are
    JSON or YAML. PATCH with a JSON merge patch changes parts of an object. ``?dryRun=All`` checks without
    saving, ``?watch=true`` streams events as JSON lines.
    ``environment`` is the reconciler's.
    """
    reader = _BodyReader()
    routes = APIRouter(route_class=_StatusRoute, dependencies=[Depends(auth)], tags=["resources"])
    _add_reading(routes, store)
    _add_writing(routes, store, reader, environment or Environment())
    _add_namespaces(routes, store, reader)
    return routes


def _add_reading(routes: APIRouter, store: FileResourceStore) -> None:
    @routes.get(_ROOT + "/{plural}")
    async def list_everywhere(plural: str, watch: bool = False) -> Response:
        """List the objects of a kind in all namespaces."""
        return await _listing(store, _kind(plural), None, watch=watch)

    @routes.get(_NAMESPACED)
    async def list_in_namespace(namespace: str, plural: str, watch: bool = False) -> Response:
        """List the objects of a kind in a namespace."""
        return await _listing(store, _kind(plural), namespace, watch=watch)

    @routes.get(_NAMESPACED + "/{name}")
    async def read(namespace: str, plural: str, name: str) -> Response:
        """Return one object."""
        found = store.get(ResourceRef(_kind(plural), namespace, name))
        if found is None:
            raise errors.not_found(f"{plural}.{GROUP}", name)
        return JSONResponse(dump(found))


def _add_writing(
    routes: APIRouter, store: FileResourceStore, reader: "_BodyReader", environment: Environment
) -> None:
    @routes.post(_NAMESPACED)
    async def create(namespace: str, plural: str, request: Request, dry_run: DryRun) -> Response:
        """Create an object; 409 if it exists."""
        resource = await reader.read(request, partial(_resource, _kind(plural), namespace, None))
        warnings = _admitted(resource, store, environment)
        saved, _ = await store.apply(resource, must_be_new=True, dry_run=dry_run)
        return JSONResponse(dump(saved), 201, headers=warnings)

    @routes.put(_NAMESPACED + "/{name}")
    @routes.patch(_NAMESPACED + "/{name}")
    async def apply(namespace: str, plural: str, name: str, request: Request, dry_run: DryRun) -> Response:
        """Create or update an object; 201 if it is new. A JSON merge patch changes parts of one."""
        kind = _kind(plural)
        if request.headers.get("Content-Type", "").startswith(MERGE_PATCH):
            present = store.get(ResourceRef(kind, namespace, name))
            if present is None:
                raise errors.not_found(f"{plural}.{GROUP}", name)
            parse = partial(_patched, present)
        else:
            parse = partial(_resource, kind, namespace, name)
        resource = await reader.read(request, parse)
        warnings = _admitted(resource, store, environment)
        saved, is_new = await store.apply(resource, dry_run=dry_run)
        return JSONResponse(dump(saved), 201 if is_new else 200, headers=warnings)

    @routes.delete(_NAMESPACED + "/{name}")
    async def delete(namespace: str, plural: str, name: str) -> Response:
        """Mark an object as deleted; it disappears when all that belongs to it is deleted."""
        gone = await store.delete(ResourceRef(_kind(plural), namespace, name))
        return JSONResponse(dump(gone))


def _add_namespaces(routes: APIRouter, store: FileResourceStore, reader: "_BodyReader") -> None:
    @routes.get("/api/v1/namespaces")
    async def list_namespaces() -> Response:
        """List the namespaces that were applied or that contain an object."""
        items = [_namespace_body(namespace) for namespace in await store.namespaces()]
        return JSONResponse(_list_body("v1", "NamespaceList", store.resource_version, items))

    @routes.get("/api/v1/namespaces/{name}")
    async def read_namespace(name: str) -> Response:
        """Return one namespace."""
        found = await store.namespace(name)
        if found is None:
            raise errors.not_found("namespaces", name)
        return JSONResponse(_namespace_body(found))

    @routes.put("/api/v1/namespaces/{name}")
    @routes.patch("/api/v1/namespaces/{name}")
    async def apply_namespace(name: str, request: Request, dry_run: DryRun) -> Response:
        """Set a namespace's labels, which name its tenant."""
        namespace = await reader.read(request, partial(_namespace, name))
        is_new = await store.apply_namespace(namespace, dry_run=dry_run)
        return JSONResponse(_namespace_body(namespace), 201 if is_new else 200)

    @routes.delete("/api/v1/namespaces/{name}")
    async def delete_namespace(name: str) -> Response:
        """Mark everything in a namespace as deleted."""
        await store.delete_namespace(name)
        return JSONResponse({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success"})


def _kind(plural: str) -> KindName:
    kind = _KINDS.get(plural)
    if kind is None:
        raise errors.not_found(GROUP, plural)
    return kind


class _BodyReader:
    """Parses request bodies, a few at a time."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(READ_AT_ONCE)

    async def read(self, request: Request, parse: Callable[[bytes], ResultT]) -> ResultT:
        """Return what ``parse``, which runs in a thread, makes of a body. Raises ``ResourceApiError``."""
        body = await _bytes(request)
        async with self._slots:
            return await asyncio.to_thread(parse, body)


async def _bytes(request: Request) -> bytes:
    chunks = bytearray()
    async for chunk in request.stream():
        chunks += chunk
        if len(chunks) > MAX_BODY_BYTES:
            raise errors.ResourceApiError(
                413, "RequestEntityTooLarge", f"The body is longer than {MAX_BODY_BYTES} bytes."
            )
    return bytes(chunks)


def _object(body: bytes) -> Any:
    try:
        documents = read_documents(body, BODY_BOUNDS)
    except InvalidInput as error:
        code = "too much to read" if error.reason == TOO_LARGE else "neither JSON nor YAML"
        raise errors.bad_request(f"The body is {code}: {error.message}.") from error
    return documents[0] if documents else None


def _parse_manifest(body: Any) -> Resource | Namespace:
    try:
        return parse_manifest(body, where="the body")
    except InvalidInput as error:
        raise errors.invalid(error.message) from error


def _resource(kind: KindName, namespace: str, name: str | None, content: bytes) -> Resource:
    """Parse an object; the URL supplies a namespace that the body leaves out, and must match otherwise."""
    return _checked(kind, namespace, name, _object(content))


def _checked(kind: KindName, namespace: str, name: str | None, body: Any) -> Resource:
    if isinstance(body, dict) and isinstance(body.get("metadata"), dict):
        body["metadata"].setdefault("namespace", namespace)
    resource = _parse_manifest(body)
    if not isinstance(resource, Domain | TaskAdapter) or resource.kind != kind:
        raise errors.bad_request(f"The body is a {resource.kind}, the address one of {PLURALS[kind]}.")
    metadata = resource.metadata
    if metadata.namespace != namespace or (name is not None and metadata.name != name):
        raise errors.bad_request(
            f"The body is {metadata.namespace}/{metadata.name}, the address {namespace}/{name or ''}."
        )
    return resource


def _patched(present: Resource, content: bytes) -> Resource:
    """Return an object after a JSON merge patch of its spec or metadata; 409 if it changed meanwhile."""
    patch = _object(content)
    if not isinstance(patch, dict):
        raise errors.bad_request("A merge patch is an object.")
    body = {name: value for name, value in dump(present).items() if name != "status"}
    metadata = present.metadata
    merged = _merged(body, {name: value for name, value in patch.items() if name != "status"})
    return _checked(present.kind, metadata.namespace, metadata.name, merged)


def _merged(target: Any, patch: Any) -> Any:
    """Return a JSON value after a merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(merged.get(name), value)
    return merged


def _namespace(name: str, content: bytes) -> Namespace:
    namespace = _parse_manifest(_object(content))
    if not isinstance(namespace, Namespace) or namespace.metadata.name != name:
        raise errors.bad_request(f"The body must be the Namespace {name}.")
    try:
        check_tenant(tenant_of(name, namespace.metadata.labels), name)
    except InvalidInput as error:
        raise errors.invalid(error.message) from error
    return namespace


def _admitted(resource: Resource, store: FileResourceStore, environment: Environment) -> dict[str, str]:
    """Return warnings as response headers. Raises ``ResourceApiError`` if admission rejects the resource."""
    decision = decide_admission(resource, store.get(ResourceRef.of(resource)), store.get, environment)
    if decision.rejection is not None:
        raise errors.invalid(decision.rejection)
    if not decision.warnings:
        return {}
    return {"Warning": ", ".join(f"299 - {json.dumps(text)}" for text in decision.warnings)}


async def _listing(
    store: FileResourceStore, kind: KindName, namespace: str | None, *, watch: bool
) -> Response:
    if watch:
        return StreamingResponse(_watch(store, kind, namespace), media_type="application/json")
    items = [dump(resource) for resource in await store.resources(kind, namespace)]
    return JSONResponse(_list_body(API_VERSION, f"{kind}List", store.resource_version, items))


async def _watch(store: FileResourceStore, kind: KindName, namespace: str | None) -> AsyncIterator[str]:
    """Yield present objects as ADDED, then every change, one JSON object a line."""
    with store.watchers.subscribed() as events:
        for resource in await store.resources(kind, namespace):
            yield _event_line("ADDED", resource)
        async for event in events:
            in_namespace = namespace in (None, event.resource.metadata.namespace)
            if event.resource.kind == kind and in_namespace:
                yield _event_line(event.type, event.resource)


def _event_line(type_: str, resource: Resource) -> str:
    return json.dumps({"type": type_, "object": dump(resource)}, ensure_ascii=False) + "\n"


def _list_body(api_version: str, kind: str, version: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"resourceVersion": version},
        "items": items,
    }


def _namespace_body(namespace: Namespace) -> dict[str, Any]:
    return namespace.model_dump(mode="json", by_alias=True)
