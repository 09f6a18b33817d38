"""The HTTP APIs that the command calls: resources, as on a Kubernetes API server, and administration."""

import json
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from hmi_api.names import API_VERSION, GROUP, VERSION
from hmi_api.resources.kinds import KINDS, Kind
from hmi_cli.client import Client, path_part
from hmi_cli.errors import ApiError, CliError, UsageError
from hmi_cli.manifests import Manifest

FIELD_MANAGER = "hmi"
Object = dict[str, Any]


class ResourceApi:
    """Lists, reads, applies, deletes and watches objects."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, kind: Kind, namespace: str | None) -> list[Object]:
        """Return the objects of a kind in a namespace, or everywhere when it is None."""
        answer = self._client.request("GET", resource_path(kind, namespace))
        return [_with_kind(item, kind) for item in answer.get("items", [])]

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Return one object. Raise ``ApiError`` if it does not exist."""
        return _with_kind(self._client.request("GET", resource_path(kind, namespace, name)), kind)

    def find(self, manifest: Manifest, namespace: str) -> Object | None:
        """Return the current object of a manifest; None if it does not exist."""
        return self._find(object_path(manifest, namespace))

    def apply(self, manifest: Manifest, namespace: str, *, dry_run: bool) -> Object:
        """Create an object, or update it to what the manifest says, and return it."""
        params = {"fieldManager": FIELD_MANAGER, "force": "true"} | ({"dryRun": "All"} if dry_run else {})
        return self._client.request(
            "PATCH",
            object_path(manifest, namespace),
            params=params,
            content=json.dumps(manifest.body),  # JSON is YAML, too
            headers={"Content-Type": "application/apply-patch+yaml"},
        )

    def annotate(self, kind: Kind, namespace: str, name: str, annotation: str, value: str | None) -> Object:
        """Set an annotation of an object, or remove it if ``value`` is None; return the object."""
        patch = {"metadata": {"annotations": {annotation: value}}}
        return self._client.request(
            "PATCH",
            resource_path(kind, namespace, name),
            content=json.dumps(patch),
            headers={"Content-Type": "application/merge-patch+json"},
        )

    def delete(self, kind: Kind, namespace: str, name: str) -> None:
        """Request the deletion of an object, which continues in the background."""
        self._client.request("DELETE", resource_path(kind, namespace, name))

    def find_deleting(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """Return an object that is marked for deletion; None once it is deleted."""
        found = self._find(resource_path(kind, namespace, name))
        # Without the mark it is a new object of the same name.
        return found if found and found["metadata"].get("deletionTimestamp") else None

    def _find(self, address: str) -> Object | None:
        try:
            return self._client.request("GET", address)
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None

    def watch(self, kind: Kind, namespace: str | None) -> Iterator[tuple[str, Object]]:
        """Yield ``(ADDED | MODIFIED | DELETED, object)``: the existing objects, then every change."""
        for event in self._client.lines(resource_path(kind, namespace), params={"watch": "true"}):
            if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                yield event["type"], _with_kind(event["object"], kind)


def resource_path(kind: Kind, namespace: str | None, name: str | None = None) -> str:
    """Return the path of a kind's objects, or of one of them."""
    scope = f"/namespaces/{path_part(namespace)}" if namespace else ""
    return f"/apis/{GROUP}/{VERSION}{scope}/{kind.plural}" + (f"/{path_part(name)}" if name else "")


def object_path(manifest: Manifest, namespace: str) -> str:
    """Return the path of a manifest's object. Raise ``UsageError`` for a kind that HMI does not know."""
    body = manifest.body
    if body["kind"] == "Namespace":
        return f"/api/v1/namespaces/{path_part(body['metadata']['name'])}"
    for kind in KINDS.values():
        if body["kind"] == kind.name and body["apiVersion"] == API_VERSION:
            return resource_path(kind, namespace, body["metadata"]["name"])
    known = ", ".join(f"{kind.name} ({API_VERSION})" for kind in KINDS.values())
    raise UsageError(
        f'no resource type "{body["kind"]}" in {body["apiVersion"]}',
        hint=f"known: {known}, Namespace (v1)",
    )


def title_of(manifest: Manifest) -> str:
    """Return ``domain.hmi.dev/NAME`` or ``namespace/NAME``: the object as kubectl names it."""
    group, slash, _ = manifest.body["apiVersion"].partition("/")
    type_ = str(manifest.body["kind"]).lower() + (f".{group}" if slash else "")
    return f"{type_}/{manifest.body['metadata']['name']}"


def _with_kind(item: Object, kind: Kind) -> Object:
    """Add kind and apiVersion, which the items of a list may lack."""
    return {"apiVersion": API_VERSION, "kind": kind.name} | item


BASE = "/admin/v1"
Answer = dict[str, Any]
Query = dict[str, str | list[str]]


class AdminApi:
    """The control plane's admin API: tenants, keys, runtimes, prices, usage and bills."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def tenants(self, *, deleted: bool = False) -> list[Answer]:
        """Return the tenants, or the deleted ones: their usage and bills can still be read by id."""
        return pages(self._client, f"{BASE}/deleted-tenants" if deleted else f"{BASE}/tenants", {})

    def create_tenant(self, name: str) -> None:
        """Create a tenant."""
        self._client.request("POST", f"{BASE}/tenants", json={"name": name})

    def delete_tenant(self, name: str) -> None:
        """Delete a tenant and its keys. Raise ``ApiError`` if it does not exist or has resources."""
        path = f"{BASE}/tenants/{path_part(name)}"
        self._client.request("GET", path)  # deleting a tenant that does not exist would succeed
        self._client.request("DELETE", path)

    def keys(self, tenant: str) -> list[Answer]:
        """Return a tenant's keys, without their secrets."""
        return pages(self._client, f"{BASE}/tenants/{path_part(tenant)}/keys", {})

    def create_key(self, tenant: str, name: str) -> Answer:
        """Create a key; only this answer has its secret."""
        return self._client.request("POST", f"{BASE}/tenants/{path_part(tenant)}/keys", json={"name": name})

    def revoke_key(self, tenant: str, key_id: str) -> None:
        """Revoke a key."""
        self._client.request("DELETE", f"{BASE}/tenants/{path_part(tenant)}/keys/{path_part(key_id)}")

    def runtimes(self) -> list[Answer]:
        """Return the runtimes, with what each has loaded."""
        return pages(self._client, f"{BASE}/runtimes", {})

    def prices(self) -> list[Answer]:
        """Return the price list."""
        return pages(self._client, f"{BASE}/prices", {})

    def set_price(self, meter: str, unit_price: str, currency: str | None = None) -> Answer:
        """Set a price from now on and return it; the installation's currency is the default."""
        body = {"meter": meter, "unitPrice": unit_price, "currency": currency}
        return self._client.request("PUT", f"{BASE}/prices", json=body)

    def usage(self, query: Query) -> list[Answer]:
        """Return the lines of a usage report."""
        return pages(self._client, f"{BASE}/usage", query)

    def bill(self, tenant: str, query: Query) -> Answer:
        """Return a tenant's bill from the price list."""
        return self._client.request("GET", f"{BASE}/bills/{path_part(tenant)}", params=query)


def pages(client: Client, path: str, query: Query) -> list[Answer]:
    """Return the items of all pages of a list."""
    items: list[Answer] = []
    cursor: str | None = None
    while True:
        answer = client.request("GET", path, params={**query, **({"cursor": cursor} if cursor else {})})
        if not isinstance(answer.get("items"), list):
            raise CliError(f"{client.server}{path} did not answer with a list", hint="is this an HMI server?")
        items += answer["items"]
        before, cursor = cursor, answer.get("nextCursor")
        if not cursor:
            return items
        if cursor == before:
            raise CliError(
                f"{client.server}{path} returns the same page again and again", hint="is this an HMI server?"
            )
