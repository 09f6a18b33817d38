"""Orphans: catalog records whose objects are gone from the cluster to which the catalog belongs.

An object that is deleted without a finalizer, for instance while HMI is uninstalled, leaves an orphan.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from hmi_api.errors import HmiError, InvalidInput
from hmi_api.internal.catalog import RegisteredCluster
from hmi_api.names import DomainKey, KindName
from hmi_operator.ports import Ports, ResourceRef

logger = logging.getLogger(__name__)

OTHER_CLUSTER = "OtherCluster"
REGISTRATION_SECONDS = 30.0
"""How often the registration is renewed: well within the control plane's timeout."""
COLLECT_SECONDS = 300.0
"""How often the catalog is searched for orphans."""
_RETRY_SECONDS = 5.0


@dataclass(frozen=True)
class OrphanGrace:
    """How long a record without an object is kept, in seconds."""

    seconds: float = 3600.0
    """After its object was first missed."""
    inherited_seconds: float = 24 * 3600.0
    """After this cluster was registered with a catalog that had records: when a cluster is rebuilt, its
    objects come later than its operator."""


@dataclass(frozen=True)
class Orphan:
    """A record in the catalog without an object."""

    ref: ResourceRef
    uid: str
    """Of the object that the record is for."""


async def find_orphans(
    ports: Ports, kind: KindName, *, domain: DomainKey | None = None
) -> AsyncIterator[Orphan]:
    """Go through the orphans of a kind; of TaskAdapters only those on ``domain``, if given.

    Records in namespaces of other operators are left out. The store is read from memory: call ``is_absent``
    before anything is deleted.
    """
    cursor: str | None = None
    while True:
        page = await ports.control_plane.list_records(kind, cursor, domain=domain)
        for record in page.items:
            ref = ResourceRef.from_key(kind, record.key)
            if ports.store.covers(ref.namespace) and ports.store.get(ref) is None:
                yield Orphan(ref, record.uid)
        cursor = page.next_cursor
        if cursor is None:
            return


@dataclass
class OrphanCollector:
    """Registers this cluster with the catalog, and deletes its orphans.

    Before each deletion the object is requested by name from the store; a failed request deletes nothing.
    ``on_deleted`` is called with each deleted orphan.
    """

    ports: Ports
    grace: OrphanGrace = OrphanGrace()
    on_deleted: Callable[[Orphan], None] = lambda orphan: None
    clock: Callable[[], float] = time.monotonic
    _missed_since: dict[Orphan, float] = field(default_factory=dict, init=False)

    async def register(self) -> RegisteredCluster | None:
        """Register this cluster with the catalog; None if it does not answer.

        Raises ``InvalidInput`` OtherCluster if the catalog belongs to another cluster.
        """
        try:
            return await self.ports.control_plane.register_cluster(await self.ports.store.identity())
        except InvalidInput:
            raise
        except HmiError as error:
            logger.warning("this cluster could not be registered with the catalog: %s", error)
            return None

    async def register_until_accepted(self) -> None:
        """Register this cluster with the catalog; wait while it belongs to another one."""
        while True:
            try:
                await self.register()
                return
            except InvalidInput as refused:
                logger.error("nothing is reconciled: %s", refused)
            await asyncio.sleep(_RETRY_SECONDS)

    async def run(self) -> None:
        """Renew the registration and delete orphans until cancelled. Raises ``InvalidInput`` OtherCluster."""
        next_collection = self.clock()
        while True:
            registered = await self.register()
            if registered is not None and self.clock() >= next_collection:
                next_collection = self.clock() + COLLECT_SECONDS
                try:
                    await self.collect(registered)
                except HmiError as error:
                    logger.warning("the catalog could not be compared with the cluster: %s", error)
            await asyncio.sleep(REGISTRATION_SECONDS if registered is not None else _RETRY_SECONDS)

    async def collect(self, registered: RegisteredCluster) -> None:
        """Delete the orphans whose grace period is over. Raises ``HmiError`` as the ports do."""
        if registered.inherited and registered.known_seconds < self.grace.inherited_seconds:
            return
        now = self.clock()
        # TaskAdapters first: the catalog deletes no Domain that TaskAdapters depend on.
        found = [orphan async for orphan in find_orphans(self.ports, "TaskAdapter")]
        found += [orphan async for orphan in find_orphans(self.ports, "Domain")]
        self._missed_since = {orphan: self._missed_since.get(orphan, now) for orphan in found}
        for orphan in found:
            if now - self._missed_since[orphan] >= self.grace.seconds:
                await self._delete(orphan)

    async def _delete(self, orphan: Orphan) -> None:
        ref = orphan.ref
        try:
            if not await self.ports.store.is_absent(ref):
                return
            self.ports.require_leadership()
            await self.ports.jobs.delete_all(orphan.uid, ref.namespace)
            await self.ports.control_plane.delete(ref.kind, ref.key, orphan.uid)
        except HmiError as error:
            logger.warning("%s: its orphaned record could not be deleted: %s", ref, error)
            return
        self._missed_since.pop(orphan, None)
        logger.info("%s: deleted from the catalog, as its object is gone", ref)
        self.on_deleted(orphan)
