"""Keeping catalog and cluster the same: the catalog is claimed for a cluster, and its orphans are erased.

An orphan is a row of the catalog whose object was deleted while nobody of HMI's held it: while HMI was
uninstalled or away, or before a finalizer was on it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from hmi_api.errors import HmiError, InvalidInput
from hmi_api.internal.catalog import ClusterClaimed
from hmi_api.names import KindName
from hmi_operator.ports import ControlPlane, ResourceRef, ResourceStore, TrainingJobs

logger = logging.getLogger(__name__)

OTHER_CLUSTER = "OtherCluster"
CLAIM_SECONDS = 30.0
"""How often the catalog is claimed: well within what the control plane takes for silence."""
ROUND_SECONDS = 300.0
"""How often orphans are looked for."""
_RETRY_SECONDS = 5.0
_KINDS: Sequence[KindName] = ("TaskAdapter", "Domain")
"""In this order: the catalog erases no Domain on which TaskAdapters stand."""


@dataclass(frozen=True)
class OrphanGrace:
    """How long a row without an object is kept, in seconds."""

    seconds: float = 3600.0
    """From the first time that its object was missed."""
    inherited_seconds: float = 24 * 3600.0
    """From when the catalog was first seen by this cluster, where it had rows before: a cluster that is
    rebuilt gets its objects later than its operator."""


@dataclass(frozen=True)
class Orphan:
    """A row of the catalog without an object."""

    ref: ResourceRef
    uid: str
    """Of the object that it was declared for."""


class OrphanCollector:
    """Claims the catalog for one cluster, and erases its orphans.

    Nothing is erased on a list that failed: of each orphan, the store is asked by name right before.
    Namespaces that are not looked after are left alone. ``require_leadership`` raises ``NotReady``
    when this replica is not the leader. ``on_deleted`` is called with each deleted orphan.
    """

    def __init__(
        self,
        store: ResourceStore,
        control_plane: ControlPlane,
        jobs: TrainingJobs,
        *,
        grace: OrphanGrace | None = None,
        require_leadership: Callable[[], None] = lambda: None,
        on_deleted: Callable[[Orphan], None] = lambda orphan: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._control_plane = control_plane
        self._jobs = jobs
        self._grace = grace or OrphanGrace()
        self._require_leadership = require_leadership
        self._on_deleted = on_deleted
        self._clock = clock
        self._missed_since: dict[Orphan, float] = {}

    async def claim(self) -> ClusterClaimed | None:
        """Claim the catalog; None where that could not be done now. Raises ``InvalidInput`` OtherCluster."""
        try:
            return await self._control_plane.claim(await self._store.identity())
        except InvalidInput:
            raise
        except HmiError as error:
            logger.warning("the catalog could not be claimed for this cluster: %s", error)
            return None

    async def claim_until_taken(self) -> None:
        """Claim the catalog; wait while another cluster has it."""
        while True:
            try:
                await self.claim()
                return
            except InvalidInput as refused:
                logger.error("nothing is reconciled: %s", refused)
            await asyncio.sleep(_RETRY_SECONDS)

    async def run(self) -> None:
        """Claim the catalog and look for orphans until cancelled. Raises ``InvalidInput`` OtherCluster."""
        next_round = self._clock()
        while True:
            claimed = await self.claim()
            if claimed is not None and self._clock() >= next_round:
                next_round = self._clock() + ROUND_SECONDS
                try:
                    await self.round(claimed)
                except HmiError as error:
                    logger.warning("what the catalog has could not be held against the cluster: %s", error)
            await asyncio.sleep(CLAIM_SECONDS if claimed is not None else _RETRY_SECONDS)

    async def round(self, claimed: ClusterClaimed) -> None:
        """Look for orphans, and erase those whose grace is over. Raises ``HmiError`` as the ports do."""
        if claimed.inherited and claimed.known_seconds < self._grace.inherited_seconds:
            return
        now = self._clock()
        found = [orphan for kind in _KINDS async for orphan in self._missing(kind)]
        self._missed_since = {orphan: self._missed_since.get(orphan, now) for orphan in found}
        for orphan in found:
            if now - self._missed_since[orphan] >= self._grace.seconds:
                await self._erase(orphan)

    async def _missing(self, kind: KindName) -> AsyncIterator[Orphan]:
        cursor: str | None = None
        while True:
            page = await self._control_plane.declared(kind, cursor)
            for row in page.items:
                namespace, _, name = row.key.partition("/")
                ref = ResourceRef(kind, namespace, name)
                if self._store.covers(namespace) and await self._store.get(ref) is None:
                    yield Orphan(ref, row.uid)
            cursor = page.next_cursor
            if cursor is None:
                return

    async def _erase(self, orphan: Orphan) -> None:
        ref = orphan.ref
        try:
            if not await self._store.is_absent(ref):
                return
            self._require_leadership()
            await self._jobs.erase(orphan.uid, ref.namespace)
            erase = (
                self._control_plane.erase_domain
                if ref.kind == "Domain"
                else self._control_plane.erase_adapter
            )
            await erase(ref.key, orphan.uid)
        except HmiError as error:
            logger.warning("%s is in the catalog alone, and could not be erased: %s", ref, error)
            return
        self._missed_since.pop(orphan, None)
        logger.info("%s was erased from the catalog: it was deleted while nobody held it", ref)
        self._on_deleted(orphan)
