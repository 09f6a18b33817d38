"""The Domains as the catalog has them, asked for once for the many TaskAdapters that stand on one."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from hmi_api.internal.catalog import DomainView
from hmi_api.names import DomainKey
from hmi_operator.ports import ControlPlane

RECENT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read, and when it was asked for."""

    asked_at: float
    view: DomainView | None


class DomainCache:
    """Reads Domains from the catalog, and remembers each for a few seconds. To be used from one event loop.

    What stands on a Domain is planned from a view that may be ``RECENT_SECONDS`` old. Nothing is missed by
    it: a Domain's own plan is made from a fresh view, which is remembered here before that plan wakes what
    stands on the Domain.
    """

    def __init__(self, control_plane: ControlPlane, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._control_plane = control_plane
        self._clock = clock
        self._reads: dict[DomainKey, _Read] = {}

    async def fresh(self, key: DomainKey) -> DomainView | None:
        """Return a Domain as the catalog has it now, or None. Raises as ``ControlPlane.domain`` does."""
        asked_at = self._clock()
        view = await self._control_plane.domain(key)
        known = self._reads.get(key)
        if known is None or known.asked_at <= asked_at:  # else somebody asked later, and knows better
            self._reads[key] = _Read(asked_at, view)
        return view

    async def recent(self, key: DomainKey) -> DomainView | None:
        """Return a Domain as the catalog had it a few seconds ago or later, or None."""
        known = self._reads.get(key)
        if known is not None and self._clock() - known.asked_at < RECENT_SECONDS:
            return known.view
        return await self.fresh(key)

    def forget(self, key: DomainKey) -> None:
        """Forget a Domain that was erased."""
        self._reads.pop(key, None)
