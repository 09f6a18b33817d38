"""Resources over HTTP, with the paths and verbs of a Kubernetes API server."""

import json
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from hmi_api.names import GROUP, VERSION
from hmi_cli.client import Client, path_part
from hmi_cli.errors import Refused, usage_error
from hmi_cli.kinds import KINDS, Kind
from hmi_cli.manifests import Manifest

FIELD_MANAGER = "hmi"
Object = dict[str, Any]


class ResourceApi:
    """Lists, reads, applies, deletes and watches the objects of a server."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, kind: Kind, namespace: str | None) -> list[Object]:
        """Return the objects of a kind in a namespace, or everywhere when it is None."""
        answer = self._client.ask("GET", path(kind, namespace))
        return [_with_kind(item, kind) for item in answer.get("items", [])]

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Return one object; ``CliError`` when there is none."""
        return _with_kind(self._client.ask("GET", path(kind, namespace, name)), kind)

    def find(self, manifest: Manifest, namespace: str) -> Object | None:
        """Return the object that a manifest names as it stands; None when there is none."""
        return self._find(object_path(manifest, namespace))

    def apply(self, manifest: Manifest, namespace: str, *, dry_run: bool) -> Object:
        """Create an object or bring it to what the manifest says, and return it."""
        body = manifest.body
        params = {"fieldManager": FIELD_MANAGER, "force": "true"} | ({"dryRun": "All"} if dry_run else {})
        answer: Object = self._client.ask(
            "PATCH",
            object_path(manifest, namespace),
            params=params,
            content=json.dumps(body),  # which is YAML, too, and means the same to every reader
            headers={"Content-Type": "application/apply-patch+yaml"},
        )
        return answer

    def delete(self, kind: Kind, namespace: str, name: str) -> None:
        """Ask for an object's deletion; what it held is freed in the background."""
        self._client.ask("DELETE", path(kind, namespace, name))

    def find_leaving(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """Return an object that is marked for deletion and still there; None once it is gone."""
        found = self._find(path(kind, namespace, name))
        # Without the mark it is a namesake that was applied since.
        return found if found and found["metadata"].get("deletionTimestamp") else None

    def _find(self, address: str) -> Object | None:
        try:
            found: Object = self._client.ask("GET", address)
        except Refused as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None
        return found

    def watch(self, kind: Kind, namespace: str | None) -> Iterator[tuple[str, Object]]:
        """Yield ``(ADDED | MODIFIED | DELETED, object)`` as it happens, what is there first."""
        for event in self._client.lines(path(kind, namespace), params={"watch": "true"}):
            if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                yield event["type"], _with_kind(event["object"], kind)


def path(kind: Kind, namespace: str | None, name: str | None = None) -> str:
    """Return the address of a kind's objects, or of one of them."""
    scope = f"/namespaces/{path_part(namespace)}" if namespace else ""
    return f"/apis/{GROUP}/{VERSION}{scope}/{kind.plural}" + (f"/{path_part(name)}" if name else "")


def object_path(manifest: Manifest, namespace: str) -> str:
    """Return the address of a manifest's object; ``CliError`` for kinds that HMI does not keep."""
    body = manifest.body
    if body["kind"] == "Namespace":
        return f"/api/v1/namespaces/{path_part(body['metadata']['name'])}"
    for kind in KINDS:
        if body["kind"] == kind.name and body["apiVersion"] == f"{GROUP}/{VERSION}":
            return path(kind, namespace, body["metadata"]["name"])
    known = ", ".join(f"{kind.name} ({GROUP}/{VERSION})" for kind in KINDS)
    raise usage_error(
        f'no resource type "{body["kind"]}" in {body["apiVersion"]}',
        hint=f"known: {known}, Namespace (v1)",
    )


def title_of(manifest: Manifest) -> str:
    """Return ``domain.hmi.dev`` or ``namespace``: the object's type as kubectl prints it."""
    group, slash, _ = manifest.body["apiVersion"].partition("/")
    return str(manifest.body["kind"]).lower() + (f".{group}" if slash else "")


def _with_kind(item: Object, kind: Kind) -> Object:
    """Lists may leave kind and apiVersion to their head; every object gets its own."""
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind.name} | item
