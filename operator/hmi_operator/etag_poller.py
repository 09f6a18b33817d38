"""Polls the ETags of TaskAdapters, to reconcile those that changed in the catalog.

Runtimes report what they serve to the control plane only. Each time a TaskAdapter is read, the ETag of its
view is recorded. The poller requests the present ETags of all, in large batches, and enqueues those that
changed. No change is lost if a poll fails: the next one finds it. ``docs/decisions/operator-etags.md``
compares this with a long poll.
"""

import asyncio
import logging
from collections.abc import Callable

from hmi_api.errors import HmiError
from hmi_api.internal.catalog import MAX_ETAGS, AdapterView
from hmi_api.internal.client import ControlPlaneClient
from hmi_operator.ports import ResourceRef

logger = logging.getLogger(__name__)

SHORTEST_SECONDS = 2.0
ETAGS_PER_SECOND = 1000.0
"""Bound on the requested ETags: the more TaskAdapters, the rarer the polls."""


class EtagPoller:
    """Enqueues every TaskAdapter whose ETag changed since it was read. For use in one event loop."""

    def __init__(self, control_plane: ControlPlaneClient, enqueue: Callable[[ResourceRef], None]) -> None:
        self._control_plane = control_plane
        self._enqueue = enqueue
        self._etags: dict[str, str] = {}

    @property
    def pause_seconds(self) -> float:
        """The pause between two polls."""
        return max(SHORTEST_SECONDS, len(self._etags) / ETAGS_PER_SECOND)

    def record(self, key: str, view: AdapterView | None) -> None:
        """Record the ETag with which a TaskAdapter (``namespace/name``) was read."""
        if view is not None and view.etag:
            self._etags[key] = view.etag
        else:
            self._etags.pop(key, None)

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await asyncio.sleep(self.pause_seconds)
            try:
                await self.poll()
            except HmiError as error:
                logger.warning("the ETags of TaskAdapters could not be read: %s", error)

    async def poll(self) -> None:
        """Enqueue every TaskAdapter whose ETag changed. Raises ``HmiError`` as the client does."""
        keys = list(self._etags)
        for start in range(0, len(keys), MAX_ETAGS):
            batch = keys[start : start + MAX_ETAGS]
            etags = await self._control_plane.adapter_etags(batch)
            for key in batch:
                if key not in self._etags or self._etags[key] == (etag := etags.get(key)):
                    continue
                if etag is None:
                    del self._etags[key]
                else:
                    self._etags[key] = etag  # enqueue once for each change, even if reconciling fails
                self._enqueue(ResourceRef.from_key("TaskAdapter", key))
