"""Erasing what was made for a resource: its processes, its work files and its rows in the catalog."""

import logging
from collections.abc import Callable

from hmi_api.errors import HmiError
from hmi_api.names import DomainKey
from hmi_api.resources.domain import Domain
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.planning.actions import Erase, Restore, Revoke, Withdraw
from hmi_operator.ports import ControlPlane, ResourceRef, ResourceStore, TrainingJobs

logger = logging.getLogger(__name__)


class Eraser:
    """Erases resources through the engine's ports.

    ``require_leadership`` is called before what cannot be undone, ``erased`` with each Domain that has gone.
    """

    def __init__(
        self,
        store: ResourceStore,
        control_plane: ControlPlane,
        jobs: TrainingJobs,
        require_leadership: Callable[[], None],
        erased: Callable[[DomainKey], None],
    ) -> None:
        self._store = store
        self._control_plane = control_plane
        self._jobs = jobs
        self._require_leadership = require_leadership
        self._erased = erased

    async def erase(self, resource: Domain | TaskAdapter) -> None:
        """Erase what belongs to a resource that is being deleted. Raises ``HmiError`` as the ports do."""
        # Processes first: one that lives on could publish into what is being erased.
        await self._jobs.erase(resource.metadata.uid, resource.metadata.namespace)
        key = ResourceRef.of(resource).key
        if isinstance(resource, Domain):
            await self._erase_orphans_on(resource.key)
            await self._control_plane.erase_domain(key)
            self._erased(resource.key)
        else:
            await self._control_plane.erase_adapter(key)

    async def take(self, resource: Domain | TaskAdapter, action: Erase | Withdraw | Revoke | Restore) -> None:
        """Take one of the actions that erase, or that say when something is to be erased."""
        key = ResourceRef.of(resource).key
        match action:
            case Erase():
                await self.erase(resource)
            case Withdraw():
                await self.withdraw(action.adapter)
            case Revoke():
                if action.revocation.withdraw:
                    await self._end_training(resource)
                await self._control_plane.revoke(key, action.revocation)
            case Restore():
                await self._control_plane.restore(key)

    async def withdraw(self, adapter: TaskAdapter) -> None:
        """Erase what there is of a TaskAdapter that itself stays as it is declared."""
        await self._end_training(adapter)
        await self._control_plane.erase_adapter(ResourceRef.of(adapter).key)

    async def _end_training(self, resource: Domain | TaskAdapter) -> None:
        try:
            await self._jobs.erase(resource.metadata.uid, resource.metadata.namespace)
        except HmiError as error:
            # Troubles of another tenant's namespace must not hold what is deleted or taken back here; what
            # its process hands in then is refused.
            logger.warning("%s: its training could not be ended: %s", ResourceRef.of(resource), error)

    async def _erase_orphans_on(self, domain: DomainKey) -> None:
        """Erase rows on a Domain whose objects are gone: they would keep the Domain for ever.

        The objects were deleted while nobody held them. There is no grace as for other orphans, since what is
        applied anew would find no Domain.
        """
        cursor: str | None = None
        while True:
            page = await self._control_plane.declared("TaskAdapter", cursor, domain=domain)
            for row in page.items:
                await self._erase_if_absent(row.key, row.uid)
            cursor = page.next_cursor
            if cursor is None:
                return

    async def _erase_if_absent(self, key: str, uid: str) -> None:
        namespace, _, name = key.partition("/")
        ref = ResourceRef("TaskAdapter", namespace, name)
        if not self._store.covers(namespace) or await self._store.get(ref) is not None:
            return
        if await self._store.is_absent(ref):
            self._require_leadership()
            logger.info("%s is erased with its Domain: it was deleted while nobody held it", ref)
            await self._control_plane.erase_adapter(key, uid)
