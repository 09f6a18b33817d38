"""Domains and TaskAdapters as objects of the API server: read, written, and converted to HMI's types."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import ValidationError

from hmi_api.names import API_VERSION, GROUP, PLURALS, VERSION, KindName
from hmi_api.resources.common import dump
from hmi_api.resources.kinds import KINDS, Resource
from hmi_api.resources.manifests import explained
from hmi_operator.kubernetes.client import MERGE_PATCH, PAGE_SIZE, KubernetesClient, Manifest, find
from hmi_operator.planning import Status
from hmi_operator.ports import ResourceRef

_READ_METADATA = (
    "name",
    "namespace",
    "uid",
    "generation",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "labels",
    "finalizers",
)
_HMI_ANNOTATIONS = "hmi.dev/"


@dataclass(frozen=True)
class InvalidObject:
    """An object that the API server accepted and this operator cannot parse, as during an upgrade."""

    ref: ResourceRef
    uid: str
    problem: str


def ref_of(kind: KindName, manifest: Manifest) -> ResourceRef:
    """Return the name of an object."""
    return ResourceRef(kind, manifest["metadata"]["namespace"], manifest["metadata"]["name"])


def parse(kind: KindName, manifest: Manifest) -> Resource | InvalidObject:
    """Return the resource in an object, without a status that cannot be parsed.

    Of the metadata, only the fields that HMI reads are kept: managed fields would be most of the memory.
    """
    type_ = KINDS[kind].type
    body = {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": _metadata(manifest["metadata"]),
        "spec": manifest.get("spec"),
    }
    try:
        return type_.model_validate(body | {"status": manifest.get("status") or {}}, by_alias=True)
    except ValidationError as error:
        if all(problem["loc"][:1] == ("status",) for problem in error.errors()):
            return type_.model_validate(body, by_alias=True)
        return InvalidObject(ref_of(kind, manifest), manifest["metadata"]["uid"], explained(error))


async def read_object(client: KubernetesClient, ref: ResourceRef) -> Manifest | None:
    """Return an object as the API server has it, or None."""
    api = client.custom_objects
    found: Any = await find(
        api.get_namespaced_custom_object(GROUP, VERSION, ref.namespace, PLURALS[ref.kind], ref.name)
    )
    return cast(Manifest | None, found)


async def patch_object(
    client: KubernetesClient, ref: ResourceRef, patch: Manifest, *, status: bool = False
) -> Manifest | None:
    """Apply a JSON merge patch to an object or its status; return the object, or None when it is gone.

    Raises ``ApiServerConflict`` when the patch names another resourceVersion or uid than the present one.
    """
    api = client.custom_objects
    send = api.patch_namespaced_custom_object_status if status else api.patch_namespaced_custom_object
    patched: Any = await find(
        send(GROUP, VERSION, ref.namespace, PLURALS[ref.kind], ref.name, patch, _content_type=MERGE_PATCH)
    )
    return cast(Manifest | None, patched)


async def list_objects(
    client: KubernetesClient,
    kind: KindName,
    namespaces: Sequence[str] = (),
    *,
    field_selector: str | None = None,
) -> AsyncIterator[Manifest]:
    """Go through all objects of a kind, in some namespaces or in all."""
    api = client.custom_objects
    selected_namespaces: Sequence[str | None] = namespaces or [None]
    for namespace in selected_namespaces:
        token: str | None = None
        while True:
            selected: Any = {"limit": PAGE_SIZE, "_continue": token, "field_selector": field_selector}
            page: Any = await (
                api.list_cluster_custom_object(GROUP, VERSION, PLURALS[kind], **selected)
                if namespace is None
                else api.list_namespaced_custom_object(GROUP, VERSION, namespace, PLURALS[kind], **selected)
            )
            for manifest in page["items"]:
                yield manifest
            token = page["metadata"].get("continue")
            if not token:
                break


def pack(resource: Resource) -> bytes:
    """Return a resource as compact JSON."""
    return resource.model_dump_json(by_alias=True, exclude_defaults=True).encode()


def unpack(kind: KindName, text: bytes) -> Resource:
    """Return the resource that ``pack`` packed."""
    return KINDS[kind].type.model_validate_json(text, by_alias=True)


def is_newer(version: str, than: str) -> bool:
    """Whether a resourceVersion is newer than another; one that is not a number always is."""
    if version.isdecimal() and than.isdecimal():
        return int(version) > int(than)
    return version != than


def status_patch(old: Status, new: Status) -> Manifest:
    """Return the JSON merge patch from one status to another; empty where they are equal."""
    return _merge_patch(dump(old), dump(new))


def with_foreign_conditions(status: Status, present: Status) -> Status:
    """Return ``status`` together with the present conditions of types that others write."""
    mine = {condition.type for condition in status.conditions}
    foreign = [condition for condition in present.conditions if condition.type not in mine]
    if not foreign:
        return status
    return status.model_copy(update={"conditions": [*status.conditions, *foreign]})


def _metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    kept = {name: metadata[name] for name in _READ_METADATA if name in metadata}
    annotations = metadata.get("annotations") or {}
    ours = {name: value for name, value in annotations.items() if name.startswith(_HMI_ANNOTATIONS)}
    return kept | ({"annotations": ours} if ours else {})


def _merge_patch(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    patch: dict[str, Any] = {name: None for name in old if name not in new}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            inner = _merge_patch(before, value)
            if inner:
                patch[name] = inner
        elif value != before:
            patch[name] = value
    return patch
