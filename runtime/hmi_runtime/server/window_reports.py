"""Reports the counted windows to the control plane, each count once."""

import asyncio
import logging
import math
import threading

from hmi_api.errors import HmiError
from hmi_api.internal.client import ControlPlaneClient, Refused
from hmi_api.internal.window_counts import WindowCountReport
from hmi_runtime.serving.window_counts import WindowCounter

log = logging.getLogger(__name__)

_MERGE_SECONDS = 2.0
"""How often batches are merged, so that the pipeline's threads need not."""
_LAST_REPORT_SECONDS = 2.0
"""How long a runtime that stops waits for its last report."""


class WindowReporter:
    """Sends what ``counter`` has counted, every ``seconds``.

    A report that is not acknowledged is sent again as it is, and the next one is made only then. The control
    plane knows it by the incarnation and its sequence number, and counts it once.
    """

    def __init__(
        self,
        control_plane: ControlPlaneClient,
        runtime_id: str,
        incarnation: str,
        counter: WindowCounter,
        seconds: float,
    ) -> None:
        self._control_plane = control_plane
        self._runtime_id = runtime_id
        self._incarnation = incarnation
        self._counter = counter
        self._seconds = seconds
        self._sequence = 0
        self._unacknowledged: WindowCountReport | None = None
        self._sending = asyncio.Lock()
        self._making = threading.Lock()

    async def run(self) -> None:
        """Report until cancelled."""
        merges = math.ceil(self._seconds / _MERGE_SECONDS)
        while True:
            for _ in range(merges):
                await asyncio.sleep(self._seconds / merges)
                await asyncio.to_thread(self._counter.merge)
            await self.report()

    async def report(self) -> None:
        """Send the report that was not acknowledged, otherwise the next one, if anything was counted."""
        async with self._sending:
            if self._unacknowledged is None:
                await asyncio.to_thread(self._make_next)
            if self._unacknowledged is None:
                return
            try:
                await self._control_plane.report_window_counts(self._runtime_id, self._unacknowledged)
            except Refused as error:
                log.error("the control plane refused the counts of windows, which are lost: %s", error)
            except HmiError as error:
                log.warning("the counts of windows could not be reported and will be sent again: %s", error)
                return
            self._unacknowledged = None

    async def report_last(self) -> None:
        """Report what was counted until the runtime stops, if the control plane answers soon."""
        try:
            async with asyncio.timeout(_LAST_REPORT_SECONDS):
                await self.report()
        except TimeoutError:
            log.warning("the last counts of windows could not be reported")

    def _make_next(self) -> None:
        """Make the next report if anything was counted.

        The thread stores it itself: a task that is cancelled meanwhile, as at shutdown, would lose it.
        """
        with self._making:
            if self._unacknowledged is not None:
                return
            domains = self._counter.take()
            if domains:
                self._sequence += 1
                self._unacknowledged = WindowCountReport(
                    incarnation=self._incarnation, sequence=self._sequence, domains=domains
                )
