"""Addresses of rows and adapters that a training Job on a cluster can read, and where it finds them.

``configmap://NAME/KEY`` and ``pvc://CLAIM/PATH`` name a ConfigMap's key and a file or folder of a volume
claim in the resource's own namespace. The Job mounts both read-only below one folder, and the training
program reads them there. ``s3://``, ``http://`` and ``https://`` are read over the network.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Literal

from hmi_api.errors import InvalidInput
from hmi_api.resources.common import DataSource
from hmi_api.resources.domain import Domain
from hmi_api.resources.task_adapter import ImportSource, TaskAdapter

CLUSTER_SCHEMES = frozenset({"s3", "http", "https", "configmap", "pvc"})
"""Schemes that a training Job on a cluster can read."""
CLUSTER_KINDS = "s3://, https://, configmap://NAME/KEY or pvc://CLAIM/PATH"
"""The same, for messages."""

_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_KEY = re.compile(r"(?!\.\.)[-._a-zA-Z0-9]{0,253}")
"""A ConfigMap's key, or nothing: all of its keys."""
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")


class MountKind(StrEnum):
    """What is mounted into a Job; the value is the folder below the mounts."""

    CONFIG_MAP = "configmaps"
    CLAIM = "claims"


_MOUNT_KINDS = {"configmap": MountKind.CONFIG_MAP, "pvc": MountKind.CLAIM}
SCHEMES_BY_MOUNT = {kind.value: scheme for scheme, kind in _MOUNT_KINDS.items()}
"""The scheme of an address by the folder below the mounts from which it is read."""


@dataclass(frozen=True)
class Mounted:
    """An address that is read from something mounted into the Job."""

    kind: MountKind
    name: str
    """Name of the ConfigMap or the claim."""
    inside: str
    """Path within it, relative; empty for all of it."""

    @property
    def path(self) -> PurePosixPath:
        """Where it is, below the folder of all mounts."""
        return PurePosixPath(self.kind.value, self.name, self.inside)


@dataclass(frozen=True)
class Address:
    """An address in a spec: where it is written, what it says, and the Secret with its credentials."""

    field: str
    uri: str
    secret: str | None
    holds: Literal["rows", "adapter"]


def addresses_of(resource: Domain | TaskAdapter) -> Iterator[Address]:
    """Yield every address of rows or adapters that a resource names."""
    sources: dict[str, DataSource | ImportSource | None] = {}
    if isinstance(resource, Domain):
        sources = {f"corpus[{number}]": source for number, source in enumerate(resource.spec.corpus)}
    else:
        if data := resource.spec.data:
            sources = {
                "data.train": data.train,
                "data.evaluation": data.evaluation,
                "data.unlabelled": data.unlabelled,
            }
        sources["source"] = resource.spec.source
    for field, source in sources.items():
        if source is not None:
            secret = source.secret_ref.name if source.secret_ref else None
            holds: Literal["rows", "adapter"] = "rows" if isinstance(source, DataSource) else "adapter"
            yield Address(f"spec.{field}.uri", source.uri, secret, holds)


def scheme_of(uri: str) -> str | None:
    """Return the scheme of an address in lower case; None for a path."""
    found = _SCHEME.match(uri)
    return found.group(1).lower() if found else None


def mounted(uri: str) -> Mounted | None:
    """Return what a ``configmap://`` or ``pvc://`` address names; None for any other.

    Raises ``InvalidInput`` AddressMalformed.
    """
    scheme = scheme_of(uri)
    kind = _MOUNT_KINDS.get(scheme or "")
    if kind is None:
        return None
    name, _, inside = uri.partition("://")[2].partition("/")
    inside = inside.strip("/")
    if kind is MountKind.CONFIG_MAP:
        form, valid = "configmap://NAME/KEY", _KEY.fullmatch(inside) is not None
    else:
        form, valid = "pvc://CLAIM/PATH", ".." not in PurePosixPath(inside).parts and "\0" not in inside
    if not _OBJECT_NAME.fullmatch(name) or not valid:
        raise InvalidInput("AddressMalformed", f"{uri} is not of the form {form}; correct it.")
    return Mounted(kind, name, inside)


def check_address(address: Address) -> None:
    """Raise ``InvalidInput`` AddressMalformed for rows at a ConfigMap without a key."""
    named = mounted(address.uri)
    without_key = named is not None and named.kind is MountKind.CONFIG_MAP and not named.inside
    if without_key and address.holds == "rows":
        raise InvalidInput("AddressMalformed", f"{address.uri} names no key; write configmap://NAME/KEY.")
