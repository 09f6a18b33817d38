"""Names that all parts share: the API group, labels, keys and digests."""

import hashlib
import json
from typing import Any, Literal, NewType

GROUP = "hmi.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

TENANT_LABEL = f"{GROUP}/tenant"
FINALIZER = f"{GROUP}/cleanup"
RETRAIN_ANNOTATION = f"{GROUP}/retrain"
"""A new value trains again although the spec is the same, for example after rows were corrected in place."""
REFRESH_ANNOTATION = f"{GROUP}/refresh"
"""A new value refreshes a Domain's table at once, if ``plot.refresh`` is set."""
TABLE_VERSION_ANNOTATION = f"{GROUP}/table-version"
"""The version of a Domain whose table is served while the annotation is there; nothing is refreshed then."""

KindName = Literal["Domain", "TaskAdapter"]
PLURALS: dict[KindName, str] = {"Domain": "domains", "TaskAdapter": "taskadapters"}
"""The plural of each kind, as in addresses of the API server."""

Tenant = NewType("Tenant", str)
"""Who is metered and billed; one or more namespaces belong to a tenant."""

AdapterKey = NewType("AdapterKey", str)
"""``{tenant}/{adapter}``: routes requests; unique in the catalog."""

DomainKey = NewType("DomainKey", str)
"""``{namespace}/{domain}``: identifies a Domain across namespaces."""

Digest = NewType("Digest", str)
"""``sha256:`` and 64 hexadecimal digits."""


def adapter_key(tenant: str, name: str) -> AdapterKey:
    """Return the routing key of a tenant's adapter."""
    return AdapterKey(f"{tenant}/{name}")


def domain_key(namespace: str, name: str) -> DomainKey:
    """Return the key of a Domain."""
    return DomainKey(f"{namespace}/{name}")


def tenant_of(namespace: str, labels: dict[str, str] | None = None) -> Tenant:
    """Return a namespace's tenant: its ``hmi.dev/tenant`` label, else its own name."""
    return Tenant((labels or {}).get(TENANT_LABEL) or namespace)


def digest_bytes(data: bytes) -> Digest:
    """Return the SHA-256 digest of ``data``."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def digest_file(file: Any) -> Digest:
    """Return the SHA-256 digest of what is left of an open binary file, read in pieces."""
    return Digest("sha256:" + hashlib.file_digest(file, "sha256").hexdigest())


def digest_json(value: Any) -> Digest:
    """Return the digest of a JSON-able value, the same whatever the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return digest_bytes(canonical.encode())
