"""What the API server has, as its watches tell it: resources, who stands on whom, and namespaces' tenants."""

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hmi_api.names import FINALIZER, TENANT_LABEL, DomainKey, KindName, Tenant, tenant_of
from hmi_api.resources.domain import Domain
from hmi_operator.index import DependentsIndex
from hmi_operator.kubernetes.api import Manifest
from hmi_operator.kubernetes.objects import Resource, Status, Unreadable, is_newer, pack, read, ref_of, unpack
from hmi_operator.ports import ResourceRef

logger = logging.getLogger(__name__)

_REMEMBERED = 10_000
"""Deletions that are remembered."""


@dataclass(frozen=True, slots=True)
class _Packed:
    """A resource as text, which is a tenth of what it is as objects; it is read anew at each use."""

    uid: str
    version: str
    text: bytes


class ResourceCache:
    """The newest of every resource that was heard of; each change costs the same at any number of them.

    ``on_change`` is called with each resource that should be reconciled because of what was heard: itself,
    what stands on it or what it stood on. What this process wrote itself wakes nobody. To be used from one
    event loop.
    """

    def __init__(self) -> None:
        self._resources: dict[ResourceRef, _Packed] = {}
        self._unreadable: dict[ResourceRef, Unreadable] = {}
        self._by_namespace: dict[str, set[ResourceRef]] = defaultdict(set)
        self._index = DependentsIndex()
        self._labels: dict[str, dict[str, str]] = {}
        self._writing: dict[ResourceRef, Status] = {}
        self._gone_while_listing: dict[KindName, set[str]] = {}
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self.on_change: Callable[[ResourceRef], None] = _nobody

    def __len__(self) -> int:
        return len(self._resources)

    def get(self, ref: ResourceRef) -> Resource | None:
        """Return a resource as it was last heard of."""
        packed = self._resources.get(ref)
        return unpack(ref.kind, packed.text) if packed is not None else None

    def unreadable(self, ref: ResourceRef) -> Unreadable | None:
        """Return what is known of an object that cannot be read."""
        return self._unreadable.get(ref)

    def refs(self) -> list[ResourceRef]:
        """Return the names of all, Domains first: what stands on them is then planned once."""
        known = [*self._resources, *self._unreadable]
        return sorted(known, key=lambda ref: ref.kind)

    def dependents(self, key: DomainKey) -> list[ResourceRef]:
        """Return the TaskAdapters and child Domains that name this Domain."""
        return self._index.dependents(key)

    def tenant(self, namespace: str) -> Tenant:
        """Return a namespace's tenant: its label, else its name."""
        return tenant_of(namespace, self._labels.get(namespace))

    def was_deleted(self, uid: str) -> bool:
        """Say whether a watch has told of the deletion of the object with that uid, of the last thousands."""
        return uid in self._deleted

    def knows_namespace(self, name: str) -> bool:
        """Say whether a namespace was heard of, so that its tenant is known."""
        return name in self._labels

    # --- what is heard ----------------------------------------------------------------------------

    def see(self, kind: KindName, manifest: Manifest) -> None:
        """Take in an object as it is now; one that is older than what is known is passed over."""
        ref = ref_of(kind, manifest)
        if not self._is_news(ref, manifest):
            return
        old = self.get(ref)
        new = read(kind, manifest)
        if isinstance(new, Unreadable):
            self._put_unreadable(new)
            return
        self._put(new)
        if old is None or _differs(old, new, self._writing.get(ref)):
            self.on_change(ref)
        if isinstance(new, Domain) and not (isinstance(old, Domain) and old.spec == new.spec):
            self._wake_dependents(new.key)

    def see_deleted(self, kind: KindName, manifest: Manifest) -> None:
        """Take in that an object is gone."""
        uid = manifest["metadata"]["uid"]
        self._deleted[uid] = None
        if len(self._deleted) > _REMEMBERED:
            self._deleted.popitem(last=False)
        self.drop(ref_of(kind, manifest), uid)

    def see_namespace(self, manifest: Manifest, *, deleted: bool = False) -> None:
        """Take in a namespace's label; where its tenant is another now, all in it are reconciled."""
        name = manifest["metadata"]["name"]
        labels = {} if deleted else manifest["metadata"].get("labels") or {}
        before = self.tenant(name)
        self._labels[name] = {TENANT_LABEL: labels[TENANT_LABEL]} if TENANT_LABEL in labels else {}
        if deleted:
            del self._labels[name]
        if self.tenant(name) != before:
            for ref in self._by_namespace.get(name, ()):
                self.on_change(ref)

    @contextmanager
    def listing(self, kind: KindName) -> Iterator[Callable[[Manifest], None]]:
        """Take in a complete list, object by object; what was known before and is not in it is gone.

        A watch that was away tells of no deletions; this does.
        """
        before = {ref: one.uid for ref, one in self._resources.items() if ref.kind == kind}
        before |= {ref: one.uid for ref, one in self._unreadable.items() if ref.kind == kind}
        gone: set[str] = set()
        self._gone_while_listing[kind] = gone

        def take(manifest: Manifest) -> None:
            before.pop(ref_of(kind, manifest), None)
            if manifest["metadata"]["uid"] not in gone:  # it may have gone since the page was read
                self.see(kind, manifest)

        try:
            yield take
        finally:
            del self._gone_while_listing[kind]
        for ref, uid in before.items():
            self.drop(ref, uid)

    # --- what is written --------------------------------------------------------------------------

    def writing(self, ref: ResourceRef, status: Status) -> None:
        """Remember what is about to be written, so that hearing of it wakes nobody."""
        self._writing[ref] = status

    def put(self, kind: KindName, manifest: Manifest) -> None:
        """Take in the answer to a write of our own, which wakes nobody."""
        new = read(kind, manifest)
        if isinstance(new, Unreadable):
            self._put_unreadable(new)
            return
        ref = ResourceRef.of(new)
        self._writing.pop(ref, None)
        if self._is_news(ref, manifest):
            self._put(new)

    def drop(self, ref: ResourceRef, uid: str | None = None) -> None:
        """Forget a resource that is gone, of that uid where one is given, and wake what that concerns."""
        self._unreadable.pop(ref, None)
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
            self._wake_dependents(old.key)

    # --- within -----------------------------------------------------------------------------------

    def _is_news(self, ref: ResourceRef, manifest: Manifest) -> bool:
        known = self._resources.get(ref)
        return known is None or is_newer(manifest["metadata"]["resourceVersion"], known.version)

    def _put(self, resource: Resource) -> None:
        ref = ResourceRef.of(resource)
        self._unreadable.pop(ref, None)
        self._resources[ref] = _Packed(
            resource.metadata.uid, resource.metadata.resource_version, pack(resource)
        )
        self._by_namespace[ref.namespace].add(ref)
        self._index.put(resource)

    def _put_unreadable(self, found: Unreadable) -> None:
        logger.error("%s cannot be read: %s", found.ref, found.problem)
        self.drop(found.ref)
        self._unreadable[found.ref] = found
        self.on_change(found.ref)

    def _wake_dependents(self, key: DomainKey) -> None:
        for ref in self._index.dependents(key):
            self.on_change(ref)


def _differs(old: Resource, new: Resource, writing: Status | None) -> bool:
    """Say whether there is anything in the new one that this process did not write itself."""
    if new.status not in (old.status, writing):
        return True
    before, after = old.metadata, new.metadata
    let_go = FINALIZER in before.finalizers and FINALIZER not in after.finalizers
    return (
        let_go
        or old.spec != new.spec
        or any(
            getattr(before, name) != getattr(after, name)
            for name in ("uid", "generation", "deletion_timestamp", "labels", "annotations")
        )
    )


def _nobody(_: ResourceRef) -> None:
    """There is no reconciler: another replica has the work."""
