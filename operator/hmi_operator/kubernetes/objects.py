"""Between what the API server says and HMI's resource types."""

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from hmi_api.names import API_VERSION, KindName
from hmi_api.resources.common import dump
from hmi_api.resources.domain import Domain, DomainStatus
from hmi_api.resources.manifests import explained
from hmi_api.resources.task_adapter import TaskAdapter, TaskAdapterStatus
from hmi_operator.kubernetes.api import Manifest
from hmi_operator.ports import ResourceRef

Resource = Domain | TaskAdapter
Status = DomainStatus | TaskAdapterStatus

_TYPES: dict[KindName, type[Domain] | type[TaskAdapter]] = {"Domain": Domain, "TaskAdapter": TaskAdapter}
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
class Unreadable:
    """An object that the API server took and this operator cannot read, as after a change of versions."""

    ref: ResourceRef
    uid: str
    problem: str


def ref_of(kind: KindName, manifest: Manifest) -> ResourceRef:
    """Return the name of an object."""
    return ResourceRef(kind, manifest["metadata"]["namespace"], manifest["metadata"]["name"])


def read(kind: KindName, manifest: Manifest) -> Resource | Unreadable:
    """Return the resource that an object is; a status that cannot be read counts as none.

    Of the metadata, only what HMI reads is kept: managed fields would be most of the memory.
    """
    type_ = _TYPES[kind]
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
        return Unreadable(ref_of(kind, manifest), manifest["metadata"]["uid"], explained(error))


def pack(resource: Resource) -> bytes:
    """Return a resource as compact text."""
    return resource.model_dump_json(by_alias=True, exclude_defaults=True).encode()


def unpack(kind: KindName, text: bytes) -> Resource:
    """Return the resource that ``pack`` was given."""
    return _TYPES[kind].model_validate_json(text, by_alias=True)


def is_newer(version: str, than: str) -> bool:
    """Say whether a resourceVersion is newer than another; versions that are no numbers always are."""
    if version.isdecimal() and than.isdecimal():
        return int(version) > int(than)
    return version != than


def status_patch(old: Status, new: Status) -> Manifest:
    """Return the JSON merge patch from one status to another; empty where they are the same."""
    return _merge_patch(dump(old), dump(new))


def with_foreign_conditions(status: Status, present: Status) -> Status:
    """Return ``status`` with the conditions of types that it does not speak of, as they are at present."""
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
