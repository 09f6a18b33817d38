"""A compact cache of Domains and TaskAdapters, their dependents, and the tenants of namespaces."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from cachetools import LRUCache

from hmi_api.names import FINALIZER, TENANT_LABEL, DomainKey, KindName, Tenant, tenant_of
from hmi_api.resources.domain import Domain
from hmi_api.resources.kinds import Resource
from hmi_operator.index import DependentsIndex
from hmi_operator.kubernetes.client import Manifest
from hmi_operator.kubernetes.objects import (
    InvalidObject,
    is_newer,
    pack,
    parse,
    ref_of,
    unpack,
)
from hmi_operator.planning import Status
from hmi_operator.ports import ResourceRef

logger = logging.getLogger(__name__)

_REMEMBERED = 10_000
"""Uids of deleted objects that are remembered."""


@dataclass(frozen=True, slots=True)
class _Packed:
    """A resource as JSON text, which takes a tenth of its memory as objects; it is parsed at each use."""

    uid: str
    version: str
    text: bytes


class ResourceCache:
    """The newest version of every object; each change costs the same at any number of them.

    ``on_change`` is called with each resource to reconcile after a change: the resource, its dependents, and
    the Domain that it named. The operator's own writes enqueue nothing. Use it from one event loop.
    """

    def __init__(self, on_change: Callable[[ResourceRef], None] = lambda ref: None) -> None:
        self._resources: dict[ResourceRef, _Packed] = {}
        self._invalid: dict[ResourceRef, InvalidObject] = {}
        self._by_namespace: dict[str, set[ResourceRef]] = defaultdict(set)
        self._index = DependentsIndex()
        self._labels: dict[str, dict[str, str]] = {}
        self._writing: dict[ResourceRef, Status] = {}
        self._gone_while_listing: dict[KindName, set[str]] = {}
        self._deleted: LRUCache[str, None] = LRUCache(_REMEMBERED)
        self.on_change = on_change

    def __len__(self) -> int:
        return len(self._resources)

    def get(self, ref: ResourceRef) -> Resource | None:
        """Return a resource in its newest known version."""
        packed = self._resources.get(ref)
        return unpack(ref.kind, packed.text) if packed is not None else None

    def invalid(self, ref: ResourceRef) -> InvalidObject | None:
        """Return an object that cannot be parsed, or None."""
        return self._invalid.get(ref)

    def refs(self) -> list[ResourceRef]:
        """Return all resources, Domains first, so that their dependents are planned once."""
        known = [*self._resources, *self._invalid]
        return sorted(known, key=lambda ref: ref.kind)

    def dependents(self, key: DomainKey) -> list[ResourceRef]:
        """Return the TaskAdapters and child Domains that name this Domain."""
        return self._index.dependents(key)

    def tenant(self, namespace: str) -> Tenant:
        """Return a namespace's tenant: its label, else its name."""
        return tenant_of(namespace, self._labels.get(namespace))

    def was_deleted(self, uid: str) -> bool:
        """Whether a watch reported the deletion of the object with that uid, among the last thousands."""
        return uid in self._deleted

    def knows_namespace(self, name: str) -> bool:
        """Whether a namespace is known, and with it its tenant."""
        return name in self._labels

    # --- watch events and lists -------------------------------------------------------------------

    def observe(self, kind: KindName, manifest: Manifest) -> None:
        """Store an object from a watch or a list; an older version than the known one is ignored."""
        ref = ref_of(kind, manifest)
        if not self._is_newer(ref, manifest):
            return
        old = self.get(ref)
        new = parse(kind, manifest)
        if isinstance(new, InvalidObject):
            self._put_invalid(new)
            return
        self._put(new)
        if old is None or _differs(old, new, self._writing.get(ref)):
            self.on_change(ref)
        if isinstance(new, Domain) and not (isinstance(old, Domain) and old.spec == new.spec):
            self._enqueue_dependents(new.key)

    def observe_deleted(self, kind: KindName, manifest: Manifest) -> None:
        """Remove an object whose deletion a watch reported."""
        uid = manifest["metadata"]["uid"]
        self._deleted[uid] = None
        self.drop(ref_of(kind, manifest), uid)

    def put_namespace(
        self, name: str, labels: Mapping[str, str] | None = None, *, deleted: bool = False
    ) -> None:
        """Store a namespace's tenant label; where its tenant changed, all resources in it are reconciled."""
        labels = labels or {}
        before = self.tenant(name)
        self._labels[name] = {TENANT_LABEL: labels[TENANT_LABEL]} if TENANT_LABEL in labels else {}
        if deleted:
            del self._labels[name]
        if self.tenant(name) != before:
            for ref in self._by_namespace.get(name, ()):
                self.on_change(ref)

    @contextmanager
    def listing(self, kind: KindName) -> Iterator[Callable[[Manifest], None]]:
        """Store a complete list, object by object; known objects that are not in it are deleted.

        A watch that was interrupted misses deletions; a complete list does not.
        """
        before = {ref: one.uid for ref, one in self._resources.items() if ref.kind == kind}
        before |= {ref: one.uid for ref, one in self._invalid.items() if ref.kind == kind}
        gone: set[str] = set()
        self._gone_while_listing[kind] = gone

        def observe(manifest: Manifest) -> None:
            before.pop(ref_of(kind, manifest), None)
            if manifest["metadata"]["uid"] not in gone:  # deleted since the page was read
                self.observe(kind, manifest)

        try:
            yield observe
        finally:
            del self._gone_while_listing[kind]
        for ref, uid in before.items():
            self.drop(ref, uid)

    # --- own writes -------------------------------------------------------------------------------

    def writing(self, ref: ResourceRef, status: Status) -> None:
        """Remember a status that is about to be written, so that its watch event enqueues nothing."""
        self._writing[ref] = status

    def put(self, kind: KindName, manifest: Manifest) -> None:
        """Store the answer to an own write, which enqueues nothing."""
        new = parse(kind, manifest)
        if isinstance(new, InvalidObject):
            self._put_invalid(new)
            return
        ref = ResourceRef.of(new)
        self._writing.pop(ref, None)
        if self._is_newer(ref, manifest):
            self._put(new)

    def drop(self, ref: ResourceRef, uid: str | None = None) -> None:
        """Remove a resource, of that uid where one is given, and enqueue what depends on it."""
        self._invalid.pop(ref, None)
        if uid is not None and ref.kind in self._gone_while_listing:
            self._gone_while_listing[ref.kind].add(uid)
        old = self.get(ref)
        if old is None or (uid is not None and old.metadata.uid != uid):
            return
        del self._resources[ref]
        self._writing.pop(ref, None)
        self._by_namespace[ref.namespace].discard(ref)
        if not self._by_namespace[ref.namespace]:
            del self._by_namespace[ref.namespace]
        self._index.remove(ref)
        self.on_change(ref)
        above = old.parent_key if isinstance(old, Domain) else old.domain_key
        if above is not None:
            namespace, _, name = above.partition("/")
            self.on_change(ResourceRef("Domain", namespace, name))
        if isinstance(old, Domain):
            self._enqueue_dependents(old.key)

    def _is_newer(self, ref: ResourceRef, manifest: Manifest) -> bool:
        known = self._resources.get(ref)
        return known is None or is_newer(manifest["metadata"]["resourceVersion"], known.version)

    def _put(self, resource: Resource) -> None:
        ref = ResourceRef.of(resource)
        self._invalid.pop(ref, None)
        self._resources[ref] = _Packed(
            resource.metadata.uid, resource.metadata.resource_version, pack(resource)
        )
        self._by_namespace[ref.namespace].add(ref)
        self._index.put(resource)

    def _put_invalid(self, found: InvalidObject) -> None:
        logger.error("%s cannot be parsed: %s", found.ref, found.problem)
        self.drop(found.ref)
        self._invalid[found.ref] = found
        self.on_change(found.ref)

    def _enqueue_dependents(self, key: DomainKey) -> None:
        for ref in self._index.dependents(key):
            self.on_change(ref)


def _differs(old: Resource, new: Resource, writing: Status | None) -> bool:
    """Whether the new version differs in more than what this operator wrote itself."""
    if new.status not in (old.status, writing):
        return True
    before, after = old.metadata, new.metadata
    released = FINALIZER in before.finalizers and FINALIZER not in after.finalizers
    return (
        released
        or old.spec != new.spec
        or any(
            getattr(before, name) != getattr(after, name)
            for name in ("uid", "generation", "deletion_timestamp", "labels", "annotations")
        )
    )
