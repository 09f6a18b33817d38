"""The resource store of the embedded system: JSON files and a copy in memory. One process owns the folder."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from hmi_api.names import PLURALS, DomainKey, KindName, Tenant, tenant_of
from hmi_api.resources.common import Namespace, NamespaceMeta, ObjectMeta, format_time
from hmi_api.resources.kinds import Resource
from hmi_api.resources.spec_changes import changed_immutables
from hmi_operator.embedded import errors
from hmi_operator.embedded.files import ResourceFolder
from hmi_operator.index import DependentsIndex
from hmi_operator.planning import Status
from hmi_operator.ports import ResourceRef

ResultT = TypeVar("ResultT")
_QUEUE_LIMIT = 10_000
"""Events that a slow watcher may fall behind."""


class EventType(StrEnum):
    """The types of a Kubernetes watch event."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


@dataclass(frozen=True)
class Event:
    """One change of one resource."""

    type: EventType
    resource: Resource
    spec_changed: bool
    """False if only the status or the finalizers changed."""


class Watchers:
    """Passes every event to its listeners, in order."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Event], None]] = []

    def notify(self, event: Event) -> None:
        """Call all listeners, which must be quick and must not raise."""
        for listener in list(self._listeners):
            listener(event)

    @contextmanager
    def listening(self, listener: Callable[[Event], None]) -> Iterator[None]:
        """Call ``listener`` with every event while the block runs."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    @contextmanager
    def subscribed(self) -> Iterator[AsyncIterator[Event]]:
        """Return an iterator over all events from now on; it ends if its reader falls too far behind."""
        queue: asyncio.Queue[Event] = asyncio.Queue(_QUEUE_LIMIT)
        behind = asyncio.Event()

        def put(event: Event) -> None:
            if queue.full():
                behind.set()
            else:
                queue.put_nowait(event)

        async def read() -> AsyncIterator[Event]:
            while not (behind.is_set() and queue.empty()):
                yield await queue.get()

        with self.listening(put):
            yield read()


class FileResourceStore:
    """Stores resources and namespaces; each change is on disk before the method returns.

    The ``ResourceStore`` of the reconciler, and the storage of the resource API. For use in one event loop;
    changes are serialized.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = ResourceFolder(folder)
        loaded = self._folder.load()
        self._resources = loaded.resources
        self._namespaces = loaded.namespaces
        self._version = loaded.newest_version
        self._index = DependentsIndex()
        for resource in self._resources.values():
            self._index.put(resource)
        self._lock = asyncio.Lock()
        self.watchers = Watchers()

    # --- reading ----------------------------------------------------------------------------------

    def get(self, ref: ResourceRef) -> Resource | None:
        """Return a resource, or None; do not change it."""
        return self._resources.get(ref)

    async def resources(self, kind: KindName | None = None, namespace: str | None = None) -> list[Resource]:
        """Return resources by namespace and name."""
        return [
            resource
            for ref, resource in sorted(self._resources.items(), key=lambda item: str(item[0]))
            if kind in (None, ref.kind) and namespace in (None, ref.namespace)
        ]

    def count(self) -> int:
        """Return how many resources there are."""
        return len(self._resources)

    def dependents(self, domain: DomainKey) -> list[ResourceRef]:
        """Return the TaskAdapters and child Domains that name this Domain."""
        return self._index.dependents(domain)

    async def identity(self) -> str:
        """Return the id that was written into the folder when it was first used."""
        return await asyncio.to_thread(self._folder.identity)

    def covers(self, namespace: str) -> bool:
        """Return True: every namespace is reconciled."""
        return True

    async def is_absent(self, ref: ResourceRef) -> bool:
        """Return whether there is neither such a resource nor a file of it, readable or not."""
        return ref not in self._resources and not await asyncio.to_thread(self._folder.has, ref)

    def was_deleted(self, uid: str) -> bool:
        """Return False: objects disappear only after their catalog records."""
        return False

    async def tenant(self, namespace: str) -> Tenant:
        """Return a namespace's tenant: its label, else its name."""
        found = self._namespaces.get(namespace)
        return tenant_of(namespace, found.metadata.labels if found else None)

    @property
    def resource_version(self) -> str:
        """The version of the newest change."""
        return str(self._version)

    # --- applying ---------------------------------------------------------------------------------

    async def apply(
        self, resource: Resource, *, must_be_new: bool = False, dry_run: bool = False
    ) -> tuple[Resource, bool]:
        """Create a resource or replace its spec, labels and annotations; return it and whether it is new.

        Raises ``ResourceApiError``: AlreadyExists, Conflict (it is being deleted, or its version differs) or
        Invalid (an immutable field was changed).
        """
        async with self._lock:
            ref = ResourceRef.of(resource)
            old = self._resources.get(ref)
            if old is not None and must_be_new:
                raise errors.already_exists(PLURALS[ref.kind], ref.name)
            new = _created(resource) if old is None else _replaced(old, resource)
            if dry_run or (old is not None and (old.spec, old.metadata) == (new.spec, new.metadata)):
                return new, old is None
            saved = await self._save(new)
            self._notify(EventType.ADDED if old is None else EventType.MODIFIED, saved, spec_changed=True)
            return saved, old is None

    async def delete(self, ref: ResourceRef) -> Resource:
        """Mark a resource as deleted; it disappears with its last finalizer. Raises NotFound."""
        async with self._lock:
            old = self._resources.get(ref)
            if old is None:
                raise errors.not_found(PLURALS[ref.kind], ref.name)
            if old.metadata.deletion_timestamp is not None:
                return old
            marked = _with_metadata(
                old, deletion_timestamp=format_time(datetime.now(UTC)), generation=old.metadata.generation + 1
            )
            return await self._save_or_remove(ref, marked)

    # --- for the reconciler ------------------------------------------------------------------------

    async def write_status(self, ref: ResourceRef, uid: str, status: Status) -> None:
        """Replace the status of the resource with that uid; do nothing if it is gone."""
        async with self._lock:
            old = self._resources.get(ref)
            if old is None or old.metadata.uid != uid:
                return
            new = old.model_copy(update={"status": status})
            new = _with_metadata(new, resource_version=self._next_version())
            await _complete_write(asyncio.to_thread(self._folder.write_status, ref, new))
            self._resources[ref] = new
            self._notify(EventType.MODIFIED, new, spec_changed=False)

    async def add_finalizer(self, ref: ResourceRef, uid: str, finalizer: str) -> None:
        """Add a finalizer; do nothing if the resource is gone, being deleted or has it."""
        async with self._lock:
            old = self._resources.get(ref)
            if old is None or old.metadata.uid != uid or old.metadata.deletion_timestamp is not None:
                return
            if finalizer not in old.metadata.finalizers:
                new = _with_metadata(old, finalizers=[*old.metadata.finalizers, finalizer])
                self._notify(EventType.MODIFIED, await self._save(new), spec_changed=False)

    async def remove_finalizer(self, ref: ResourceRef, uid: str, finalizer: str) -> None:
        """Remove a finalizer; a resource that is being deleted disappears with its last one."""
        async with self._lock:
            old = self._resources.get(ref)
            if old is None or old.metadata.uid != uid:
                return
            left = [name for name in old.metadata.finalizers if name != finalizer]
            await self._save_or_remove(ref, _with_metadata(old, finalizers=left))

    # --- namespaces -------------------------------------------------------------------------------

    async def namespace(self, name: str) -> Namespace | None:
        """Return a namespace that was applied or that contains a resource, or None."""
        if name in self._namespaces:
            return self._namespaces[name]
        used = any(ref.namespace == name for ref in self._resources)
        return Namespace(metadata=NamespaceMeta(name=name)) if used else None

    async def namespaces(self) -> list[Namespace]:
        """Return every namespace that was applied or that contains a resource."""
        names = sorted({*self._namespaces, *(ref.namespace for ref in self._resources)})
        return [found for name in names if (found := await self.namespace(name)) is not None]

    async def apply_namespace(self, namespace: Namespace, *, dry_run: bool = False) -> bool:
        """Set a namespace's labels; return whether it is new."""
        async with self._lock:
            name = namespace.metadata.name
            old = self._namespaces.get(name)
            if dry_run or old == namespace:
                return old is None
            await _complete_write(asyncio.to_thread(self._folder.write_namespace, namespace))
            self._namespaces[name] = namespace
            for ref, resource in self._resources.items():
                if ref.namespace == name:
                    self._notify(EventType.MODIFIED, resource, spec_changed=True)
            return old is None

    async def delete_namespace(self, name: str) -> None:
        """Delete all resources of a namespace and its labels. Raises ``ResourceApiError`` NotFound."""
        if await self.namespace(name) is None:
            raise errors.not_found("namespaces", name)
        for resource in await self.resources(namespace=name):
            await self.delete(ResourceRef.of(resource))
        async with self._lock:
            await _complete_write(asyncio.to_thread(self._folder.remove_namespace, name))
            self._namespaces.pop(name, None)

    # --- internal ----------------------------------------------------------------------------------

    async def _save(self, resource: Resource) -> Resource:
        new = _with_metadata(resource, resource_version=self._next_version())
        ref = ResourceRef.of(new)
        await _complete_write(asyncio.to_thread(self._folder.write_spec, ref, new))
        self._resources[ref] = new
        self._index.put(new)
        return new

    async def _save_or_remove(self, ref: ResourceRef, resource: Resource) -> Resource:
        if resource.metadata.finalizers or resource.metadata.deletion_timestamp is None:
            saved = await self._save(resource)
            self._notify(EventType.MODIFIED, saved, spec_changed=True)
            return saved
        await _complete_write(asyncio.to_thread(self._folder.remove, ref))
        self._resources.pop(ref, None)
        self._index.remove(ref)
        self._next_version()
        self._notify(EventType.DELETED, resource, spec_changed=True)
        return resource

    def _next_version(self) -> str:
        self._version += 1
        return str(self._version)

    def _notify(self, type_: EventType, resource: Resource, *, spec_changed: bool) -> None:
        self.watchers.notify(Event(type_, resource, spec_changed))


async def _complete_write(writing: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Finish a write even if the caller is cancelled, so that memory matches the disk."""
    task = asyncio.ensure_future(writing)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _created(resource: Resource) -> Resource:
    metadata = _incoming_metadata(resource).model_copy(
        update={
            "uid": str(uuid.uuid4()),
            "generation": 1,
            "creation_timestamp": format_time(datetime.now(UTC)),
        }
    )
    return resource.model_copy(update={"metadata": metadata, "status": type(resource.status)()})


def _replaced(old: Resource, new: Resource) -> Resource:
    plural, name = PLURALS[old.kind], old.metadata.name
    if old.metadata.deletion_timestamp is not None:
        raise errors.conflict(plural, name, "it is being deleted; apply it again once it is gone")
    meant = new.metadata.resource_version
    if meant and meant != old.metadata.resource_version:
        raise errors.conflict(
            plural, name, "it was changed meanwhile; read it again and leave resourceVersion out"
        )
    changed = changed_immutables(old, new)
    if changed:
        message = (
            f"{old.kind} {name}: {', '.join(changed)} cannot change; delete the resource and apply it again."
        )
        raise errors.invalid(message)
    metadata = _incoming_metadata(new).model_copy(
        update={
            "uid": old.metadata.uid,
            "generation": old.metadata.generation + (old.spec != new.spec),
            "resource_version": old.metadata.resource_version,
            "creation_timestamp": old.metadata.creation_timestamp,
            "finalizers": old.metadata.finalizers,
        }
    )
    return new.model_copy(update={"metadata": metadata, "status": old.status})


def _incoming_metadata(resource: Resource) -> ObjectMeta:
    """Return a manifest's metadata without the fields that only the store sets."""
    return resource.metadata.model_copy(
        update={"uid": "", "resource_version": "", "deletion_timestamp": None, "finalizers": []}
    )


def _with_metadata(resource: Resource, **changes: Any) -> Resource:
    return resource.model_copy(update={"metadata": resource.metadata.model_copy(update=changes)})
