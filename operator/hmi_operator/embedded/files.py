"""The files of the resource store, written atomically.

``{namespace}/{plural}/{name}.json`` has metadata and spec, ``{name}.status.json`` the status: a status write
never touches a spec. ``{namespace}/namespace.json`` has labels.
"""

import json
import logging
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hmi_api.durable_files import remove_durably, write_atomically
from hmi_api.names import PLURALS, KindName
from hmi_api.resources.common import Namespace, dump
from hmi_api.resources.kinds import KINDS, Resource
from hmi_operator.ports import ResourceRef

logger = logging.getLogger(__name__)
_NAMESPACE_FILE = "namespace.json"
_IDENTITY_FILE = "identity.json"


@dataclass
class Loaded:
    """The contents of a folder."""

    resources: dict[ResourceRef, Resource] = field(default_factory=dict)
    namespaces: dict[str, Namespace] = field(default_factory=dict)
    newest_version: int = 0


class ResourceFolder:
    """Reads and writes the files of one folder; each write replaces one file atomically."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def load(self) -> Loaded:
        """Read all files; log and skip those that cannot be read."""
        self._root.mkdir(parents=True, exist_ok=True)
        loaded = Loaded()
        for folder in sorted(path for path in self._root.iterdir() if path.is_dir()):
            self._load_namespace(folder, loaded)
            for kind, plural in PLURALS.items():
                for file in sorted((folder / plural).glob("*.json")):
                    if not file.name.endswith(".status.json"):
                        self._load_resource(file, kind, loaded)
        return loaded

    def identity(self) -> str:
        """Return the folder's unique id; create it on first use."""
        file = self._root / _IDENTITY_FILE
        if not file.exists():
            write_json(file, {"uid": str(uuid.uuid4())})
        return str(json.loads(file.read_bytes())["uid"])

    def has(self, ref: ResourceRef) -> bool:
        """Return whether there is a file of that resource, readable or not."""
        return self._spec_file(ref).exists()

    def write_spec(self, ref: ResourceRef, resource: Resource) -> None:
        """Write metadata and spec."""
        body = dump(resource)
        del body["status"]
        write_json(self._spec_file(ref), body)

    def write_status(self, ref: ResourceRef, resource: Resource) -> None:
        """Write the status with the uid, so that a later object of that name does not inherit it."""
        body = {
            "uid": resource.metadata.uid,
            "resourceVersion": resource.metadata.resource_version,
            "status": dump(resource.status),
        }
        write_json(self._status_file(ref), body)

    def remove(self, ref: ResourceRef) -> None:
        """Remove a resource."""
        # The spec first: a spec alone would be loaded as a new resource, a status alone is ignored.
        remove_durably(self._spec_file(ref))
        remove_durably(self._status_file(ref))

    def write_namespace(self, namespace: Namespace) -> None:
        """Write a namespace's labels."""
        body = namespace.model_dump(mode="json", by_alias=True)
        write_json(self._root / namespace.metadata.name / _NAMESPACE_FILE, body)

    def remove_namespace(self, name: str) -> None:
        """Remove a namespace's labels."""
        remove_durably(self._root / name / _NAMESPACE_FILE)

    def _spec_file(self, ref: ResourceRef) -> Path:
        return self._root / ref.namespace / PLURALS[ref.kind] / f"{ref.name}.json"

    def _status_file(self, ref: ResourceRef) -> Path:
        return self._spec_file(ref).with_name(f"{ref.name}.status.json")

    def _load_namespace(self, folder: Path, loaded: Loaded) -> None:
        body = _read(folder / _NAMESPACE_FILE)
        if body is not None:
            loaded.namespaces[folder.name] = Namespace.model_validate(body)

    def _load_resource(self, file: Path, kind: KindName, loaded: Loaded) -> None:
        body = _read(file)
        if body is None:
            return
        status = _read(file.with_name(f"{file.stem}.status.json")) or {}
        try:
            resource: Resource = KINDS[kind].type.model_validate(body)
            if status.get("uid") == resource.metadata.uid:
                resource = _with_status(resource, status)
        except ValidationError as error:
            logger.error("%s is skipped; repair or remove it: %s", file, error)
            return
        loaded.resources[ResourceRef.of(resource)] = resource
        loaded.newest_version = max(loaded.newest_version, int(resource.metadata.resource_version or 0))


def _with_status(resource: Resource, stored: dict[str, Any]) -> Resource:
    versions = (resource.metadata.resource_version, stored.get("resourceVersion") or "0")
    newest = str(max(int(version or 0) for version in versions))
    metadata = resource.metadata.model_copy(update={"resource_version": newest})
    return resource.model_copy(
        update={"status": type(resource.status).model_validate(stored["status"]), "metadata": metadata}
    )


def _read(file: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.error("%s is skipped; repair or remove it: %s", file, error)
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically: readers see the old or the new content, also after a power failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=1).encode())
