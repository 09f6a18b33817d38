"""The engine's resource store on an API server: reads from the cache, writes with preconditions."""

import logging
from collections.abc import Callable, Sequence

from hmi_api.errors import NotReady
from hmi_api.names import DomainKey, Tenant
from hmi_api.resources.domain import DomainStatus
from hmi_api.resources.task_adapter import TaskAdapterStatus
from hmi_operator.kubernetes.api import KubeApi, Manifest
from hmi_operator.kubernetes.cache import ResourceCache
from hmi_operator.kubernetes.errors import Conflict
from hmi_operator.kubernetes.kinds import NAMESPACES, RESOURCES
from hmi_operator.kubernetes.objects import Resource, status_patch, with_foreign_conditions
from hmi_operator.ports import ResourceRef

logger = logging.getLogger(__name__)

_SYSTEM_NAMESPACE = "kube-system"
TRIES = 5
"""Times that a write is made anew on what somebody else has written meanwhile."""


class KubeResourceStore:
    """The ``ResourceStore`` of an API server.

    Every write names the uid and version that it was made for. Where that is no longer the newest, the
    resource is read again and the write made anew on it, so that nobody's change is lost.
    """

    def __init__(self, api: KubeApi, cache: ResourceCache, namespaces: Sequence[str] = ()) -> None:
        """``namespaces`` are those that are looked after; all when empty."""
        self._api = api
        self._cache = cache
        self._namespaces = frozenset(namespaces)
        self._identity: str | None = None

    async def get(self, ref: ResourceRef) -> Resource | None:
        """Return a resource, or None."""
        return self._cache.get(ref)

    async def count(self) -> int:
        """Return how many resources there are."""
        return len(self._cache)

    async def identity(self) -> str:
        """Return the uid of the cluster's namespace ``kube-system``, which lives as long as the cluster."""
        if self._identity is None:
            found = await self._api.get(NAMESPACES, None, _SYSTEM_NAMESPACE)
            if found is None:
                raise NotReady("ClusterUnknown", f"There is no namespace {_SYSTEM_NAMESPACE} yet.")
            self._identity = str(found["metadata"]["uid"])
        return self._identity

    def covers(self, namespace: str) -> bool:
        """Say whether the resources of a namespace are looked after here."""
        return not self._namespaces or namespace in self._namespaces

    async def is_absent(self, ref: ResourceRef) -> bool:
        """Ask the API server whether there is no object of that name now.

        A list of one name, and no read: a read says 404 of a type that is gone as of an object that is.
        """
        fields = f"metadata.name={ref.name}"
        pages = self._api.pages(RESOURCES[ref.kind], ref.namespace, fields=fields)
        return not [manifest async for page in pages for manifest in page]

    def was_deleted(self, uid: str) -> bool:
        """Say whether a watch has told of the deletion of the object with that uid."""
        return self._cache.was_deleted(uid)

    async def tenant(self, namespace: str) -> Tenant:
        """Return the tenant of a namespace; one that is new may be heard of later than what is in it."""
        if not self._cache.knows_namespace(namespace):
            found = await self._api.get(NAMESPACES, None, namespace)
            if found is not None:
                self._cache.see_namespace(found)
        return self._cache.tenant(namespace)

    async def dependents(self, domain: DomainKey) -> list[ResourceRef]:
        """Return the TaskAdapters and child Domains that name this Domain."""
        return self._cache.dependents(domain)

    async def write_status(
        self, ref: ResourceRef, uid: str, status: DomainStatus | TaskAdapterStatus
    ) -> None:
        """Bring the status to what is given; conditions of others' types stay. Nothing when it is gone."""

        def patch(present: Resource) -> Manifest | None:
            wanted = with_foreign_conditions(status, present.status)
            changes = status_patch(present.status, wanted)
            self._cache.writing(ref, wanted)
            return {"status": changes} if changes else None

        await self._write(ref, uid, patch, subresource="status")

    async def add_finalizer(self, ref: ResourceRef, uid: str, finalizer: str) -> None:
        """Hold the resource; nothing happens when it is gone, being deleted or held already."""

        def patch(present: Resource) -> Manifest | None:
            held = present.metadata.finalizers
            if finalizer in held or present.metadata.deletion_timestamp is not None:
                return None
            return {"metadata": {"finalizers": [*held, finalizer]}}

        await self._write(ref, uid, patch)

    async def remove_finalizer(self, ref: ResourceRef, uid: str, finalizer: str) -> None:
        """Let the resource go; nothing happens when it is gone or was not held."""

        def patch(present: Resource) -> Manifest | None:
            held = present.metadata.finalizers
            if finalizer not in held:
                return None
            return {"metadata": {"finalizers": [name for name in held if name != finalizer]}}

        await self._write(ref, uid, patch)

    async def _write(
        self,
        ref: ResourceRef,
        uid: str,
        patch: Callable[[Resource], Manifest | None],
        *,
        subresource: str | None = None,
    ) -> None:
        """Make a patch of the newest version and send it, until it meets the version that it was made of."""
        kind = RESOURCES[ref.kind]
        for _ in range(TRIES):
            present = self._cache.get(ref)
            made = patch(present) if present is not None and present.metadata.uid == uid else None
            if present is None or made is None:
                return
            precondition = {"uid": uid, "resourceVersion": present.metadata.resource_version}
            body = made | {"metadata": {**made.get("metadata", {}), **precondition}}
            try:
                answer = await self._api.merge_patch(kind, ref.namespace, ref.name, body, subresource)
            except Conflict:
                logger.info("%s was changed meanwhile; the write is made anew", ref)
                await self._read_again(ref)
                continue
            if answer is None or _is_gone(answer):
                self._cache.drop(ref, uid)
            else:
                self._cache.put(ref.kind, answer)
            return
        raise NotReady("Contended", f"{ref} is changed by others faster than its status can be written.")

    async def _read_again(self, ref: ResourceRef) -> None:
        found = await self._api.get(RESOURCES[ref.kind], ref.namespace, ref.name)
        if found is None:
            self._cache.drop(ref)
        else:
            self._cache.see(ref.kind, found)


def _is_gone(manifest: Manifest) -> bool:
    """An object that is being deleted and has no finalizer left disappears with the answer."""
    metadata = manifest["metadata"]
    return "deletionTimestamp" in metadata and not metadata.get("finalizers")
