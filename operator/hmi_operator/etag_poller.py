"""Hearing which TaskAdapters to look at again because of what the control plane has to say of them.

Runtimes report what they serve to the control plane alone. Each look at a TaskAdapter notes the ETag of its
view; the ETags of all are then asked for in large batches, and whose ETag is another one is looked at.
Nothing depends on it: what is missed is found when the resource is looked at for any other cause.
"""

import asyncio
import logging
from collections.abc import Callable

from hmi_api.errors import HmiError
from hmi_api.internal.catalog import MAX_ETAGS, AdapterView
from hmi_operator.ports import ControlPlane, ResourceRef

logger = logging.getLogger(__name__)

SHORTEST_SECONDS = 2.0
ETAGS_PER_SECOND = 1000.0
"""Bound on the ETags asked for: with more TaskAdapters, a round comes more rarely."""


class EtagPoller:
    """Wakes TaskAdapters whose versions, placements or loads are others than at the last look.

    To be used from one event loop.
    """

    def __init__(self, control_plane: ControlPlane, enqueue: Callable[[ResourceRef], None]) -> None:
        self._control_plane = control_plane
        self._enqueue = enqueue
        self._noted: dict[str, str] = {}

    @property
    def pause_seconds(self) -> float:
        """How long to wait between two rounds."""
        return max(SHORTEST_SECONDS, len(self._noted) / ETAGS_PER_SECOND)

    def record(self, key: str, view: AdapterView | None) -> None:
        """Take in what a look at a TaskAdapter (``namespace/name``) was made from."""
        if view is not None and view.etag:
            self._noted[key] = view.etag
        else:
            self._noted.pop(key, None)

    async def run(self) -> None:
        """Make rounds until cancelled."""
        while True:
            await asyncio.sleep(self.pause_seconds)
            try:
                await self.poll()
            except HmiError as error:
                logger.warning("what the control plane has news of could not be read: %s", error)

    async def poll(self) -> None:
        """Ask for all ETags that were noted, and wake whose are others now. Raises as the port does."""
        every = list(self._noted)
        for start in range(0, len(every), MAX_ETAGS):
            keys = every[start : start + MAX_ETAGS]
            now = await self._control_plane.adapter_etags(keys)
            for key in keys:
                self._compare(key, now.get(key))

    def _compare(self, key: str, now: str | None) -> None:
        known = self._noted.get(key)
        if known is None or known == now:
            return
        if now is None:
            del self._noted[key]
        else:
            self._noted[key] = now  # once for each change, whatever becomes of the look
        namespace, _, name = key.partition("/")
        self._enqueue(ResourceRef("TaskAdapter", namespace, name))
