"""The resource store on an API server: reads from the cache, writes with preconditions."""

import logging
from collections.abc import Callable, Sequence

from hmi_api.errors import NotReady
from hmi_api.names import DomainKey, Tenant
from hmi_api.resources.kinds import Resource
from hmi_operator.kubernetes.cache import ResourceCache
from hmi_operator.kubernetes.client import ApiServerConflict, KubernetesClient, Manifest, find, metadata_of
from hmi_operator.kubernetes.objects import (
    list_objects,
    patch_object,
    read_object,
    status_patch,
    with_foreign_conditions,
)
from hmi_operator.planning import Status
from hmi_operator.ports import ResourceRef

logger = logging.getLogger(__name__)

_SYSTEM_NAMESPACE = "kube-system"
TRIES = 5
"""Attempts of a write that conflicts with writes of others."""


class KubeResourceStore:
    """The ``ResourceStore`` of an API server.

    Every write names the uid and resourceVersion for which it was made. After a conflict the object is read
    again and the write repeated on it, so that no other writer's change is lost.
    """

    def __init__(
        self, client: KubernetesClient, cache: ResourceCache, namespaces: Sequence[str] = ()
    ) -> None:
        """``namespaces`` are those that the operator watches; all when empty."""
        self._client = client
        self._cache = cache
        self._namespaces = frozenset(namespaces)
        self._identity: str | None = None

    def get(self, ref: ResourceRef) -> Resource | None:
        """Return a resource from the cache, or None."""
        return self._cache.get(ref)

    def count(self) -> int:
        """Return how many resources there are."""
        return len(self._cache)

    async def identity(self) -> str:
        """Return the uid of the cluster's namespace ``kube-system``, which lives as long as the cluster."""
        if self._identity is None:
            found = await find(self._client.core.read_namespace(_SYSTEM_NAMESPACE))
            if found is None:
                raise NotReady("ClusterUnknown", f"There is no namespace {_SYSTEM_NAMESPACE} yet.")
            self._identity = str(metadata_of(found).uid)
        return self._identity

    def covers(self, namespace: str) -> bool:
        """Whether the operator watches a namespace."""
        return not self._namespaces or namespace in self._namespaces

    async def is_absent(self, ref: ResourceRef) -> bool:
        """Whether the API server has no object of that name now.

        Lists the object, because a read answers 404 also when the whole resource type is gone.
        """
        fields = f"metadata.name={ref.name}"
        found = list_objects(self._client, ref.kind, [ref.namespace], field_selector=fields)
        return not [manifest async for manifest in found]

    def was_deleted(self, uid: str) -> bool:
        """Whether a watch reported the deletion of the object with that uid."""
        return self._cache.was_deleted(uid)

    async def tenant(self, namespace: str) -> Tenant:
        """Return the tenant of a namespace; the watch may report a new one later than the objects in it."""
        if not self._cache.knows_namespace(namespace):
            found = await find(self._client.core.read_namespace(namespace))
            if found is not None:
                self._cache.put_namespace(namespace, metadata_of(found).labels)
        return self._cache.tenant(namespace)

    def dependents(self, domain: DomainKey) -> list[ResourceRef]:
        """Return the TaskAdapters and child Domains that name this Domain."""
        return self._cache.dependents(domain)

    async def write_status(self, ref: ResourceRef, uid: str, status: Status) -> None:
        """Patch the status to what is given; conditions of other writers stay. Nothing when it is gone."""

        def patch(present: Resource) -> Manifest | None:
            wanted = with_foreign_conditions(status, present.status)
            changes = status_patch(present.status, wanted)
            self._cache.writing(ref, wanted)
            return {"status": changes} if changes else None

        await self._write(ref, uid, patch, status=True)

    async def add_finalizer(self, ref: ResourceRef, uid: str, finalizer: str) -> None:
        """Add a finalizer; nothing happens when it is there, or the resource is gone or being deleted."""

        def patch(present: Resource) -> Manifest | None:
            finalizers = present.metadata.finalizers
            if finalizer in finalizers or present.metadata.deletion_timestamp is not None:
                return None
            return {"metadata": {"finalizers": [*finalizers, finalizer]}}

        await self._write(ref, uid, patch)

    async def remove_finalizer(self, ref: ResourceRef, uid: str, finalizer: str) -> None:
        """Remove a finalizer; nothing happens when there is none or the resource is gone."""

        def patch(present: Resource) -> Manifest | None:
            finalizers = present.metadata.finalizers
            if finalizer not in finalizers:
                return None
            return {"metadata": {"finalizers": [name for name in finalizers if name != finalizer]}}

        await self._write(ref, uid, patch)

    async def _write(
        self,
        ref: ResourceRef,
        uid: str,
        patch: Callable[[Resource], Manifest | None],
        *,
        status: bool = False,
    ) -> None:
        """Compute a patch on the newest version and send it, again after each conflict."""
        for _ in range(TRIES):
            present = self._cache.get(ref)
            made = patch(present) if present is not None and present.metadata.uid == uid else None
            if present is None or made is None:
                return
            precondition = {"uid": uid, "resourceVersion": present.metadata.resource_version}
            body = made | {"metadata": {**made.get("metadata", {}), **precondition}}
            try:
                answer = await patch_object(self._client, ref, body, status=status)
            except ApiServerConflict:
                logger.info("%s was changed meanwhile; the write is repeated on the new version", ref)
                await self._refresh(ref)
                continue
            if answer is None or _is_gone(answer):
                self._cache.drop(ref, uid)
            else:
                self._cache.put(ref.kind, answer)
            return
        raise NotReady("Contended", f"{ref} is changed by others faster than its status can be written.")

    async def _refresh(self, ref: ResourceRef) -> None:
        found = await read_object(self._client, ref)
        if found is None:
            self._cache.drop(ref)
        else:
            self._cache.observe(ref.kind, found)


def _is_gone(manifest: Manifest) -> bool:
    """Whether an object is deleted by this answer: it has a deletionTimestamp and no finalizer left."""
    metadata = manifest["metadata"]
    return "deletionTimestamp" in metadata and not metadata.get("finalizers")
