"""Keeps this runtime at what the control plane wants of it: register, poll, load, report.

The control plane may be away at any time: what is served stays served, and calls are tried again.
"""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor

from hmi_api.errors import HmiError, NotReady
from hmi_api.internal.client import ControlPlaneClient
from hmi_api.internal.retry import RetryPolicy
from hmi_api.internal.runtimes import AdapterServing, Heartbeat, LoadFailure, RuntimeRegistration
from hmi_runtime.cache import AdapterId
from hmi_runtime.server.desired import Changes, Wanted
from hmi_runtime.server.report import Report
from hmi_runtime.server.residency import LoadedAdapter, Residency
from hmi_runtime.server.settings import RuntimeSettings
from hmi_runtime.server.stats import resident_bytes

log = logging.getLogger(__name__)

_RETRY = RetryPolicy(first_wait=0.2, longest_wait=5.0)
_LONGEST_LOAD_RETRY = 60.0
_DRAINING_HEARTBEAT = 0.5
_LONGEST_DRAINING_ANSWER = 5.0
"""Seconds to wait for the control plane's word on who else serves; one that is away cannot move anything."""

_SOONEST_NEWS = 0.1
"""Seconds between heartbeats at least, so that ten thousand loads are not ten thousand calls."""

_CHANGE_OVER_GRACE = 2.0
"""Seconds an adapter's old version stays after its routes moved: rows routed just before still find it."""


class ControlLoop:
    """One runtime's dealings with the control plane; all of it runs on one event loop but the loading."""

    def __init__(
        self,
        settings: RuntimeSettings,
        control_plane: ControlPlaneClient,
        residency: Residency,
        loaders: Executor,
    ) -> None:
        self._settings = settings
        self._control_plane = control_plane
        self._residency = residency
        self._loaders = loaders
        self._incarnation = uuid.uuid4().hex
        self._wanted = Wanted()
        self._report = Report()
        self._serving: dict[str, AdapterId] = {}
        self._attempts: dict[str, int] = {}
        self._to_load: asyncio.Queue[AdapterServing] = asyncio.Queue()
        self._being_loaded = 0
        self._news = asyncio.Event()
        self._registered = False
        self._state_read = False
        self._state_applied = False
        self.draining = False
        self._heard_of_draining = asyncio.Event()
        self._moved = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Registered, and everything in the first desired state was loaded or found to be broken."""
        return self._registered and self._state_applied and not self.draining

    @property
    def why_not_ready(self) -> str:
        """What is waited for, for ``/readyz``."""
        if self.draining:
            return "draining"
        return "loading" if self._state_read else "registering with the control plane"

    async def run(self) -> None:
        """Run until cancelled."""
        await self._insist(self._register)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll())
            tasks.create_task(self._report_news())
            for _ in range(self._settings.loader_threads):
                tasks.create_task(self._load_wanted())

    async def say_goodbye(self) -> None:
        """Tell the control plane that this runtime is gone; not insisted on."""
        try:
            await self._control_plane.deregister_runtime(self._settings.runtime_id)
        except HmiError as error:
            log.warning("could not say goodbye to the control plane: %s", error)

    def start_draining(self) -> None:
        """Say in the next heartbeat, which goes out at once, that this runtime is going."""
        self.draining = True
        self._news.set()

    async def moved(self, limit: float) -> None:
        """Wait until other runtimes serve what only this one did, for ``limit`` seconds at most.

        Returns soon where nobody else is there, or the control plane is away.
        """
        if not self._registered:
            return
        try:
            async with asyncio.timeout(min(limit, _LONGEST_DRAINING_ANSWER)):
                await self._heard_of_draining.wait()
            async with asyncio.timeout(limit):
                await self._moved.wait()
        except TimeoutError:
            log.warning("leaving before all adapters have moved")

    # --- registration and reports -------------------------------------------------------------------

    async def _register(self) -> None:
        settings = self._settings
        await self._control_plane.register_runtime(
            settings.runtime_id,
            RuntimeRegistration(
                url=settings.runtime_url,
                device=settings.device,
                capacity_bytes=self._capacity,
                incarnation=self._incarnation,
            ),
        )
        self._wanted.revision = 0
        self._report.tell_all_again()
        self._registered = True
        self._news.set()
        log.info("registered as %s", settings.runtime_id)

    @property
    def _capacity(self) -> int:
        return self._settings.host_budget + self._settings.table_budget

    async def _report_news(self) -> None:
        """Send a heartbeat when there is news, and at least every few seconds."""
        while True:
            await self._insist(self._heartbeat)
            await asyncio.sleep(_SOONEST_NEWS)
            try:
                pause = self._settings.heartbeat_seconds
                async with asyncio.timeout(min(pause, _DRAINING_HEARTBEAT) if self.draining else pause):
                    await self._news.wait()
            except TimeoutError:
                pass  # nothing new: say that we live

    async def _heartbeat(self) -> None:
        self._news.clear()
        draining = self.draining
        delta = self._report.news()
        used = self._residency.cache.host_used + self._residency.mapped_bytes
        reply = await self._control_plane.heartbeat(
            self._settings.runtime_id,
            Heartbeat(
                incarnation=self._incarnation,
                ready=sorted({str(adapter) for adapter in delta.ready}),
                gone=sorted({str(adapter) for adapter in delta.gone}),
                failed=list(delta.failed.values()),
                resident=resident_bytes(self._residency),
                free_bytes=max(0, self._capacity - used),
                queue_depth=self._residency.pipeline.unanswered,
                draining=draining,
            ),
        )
        if reply.known:
            self._report.told(delta)
            if draining:
                self._heard_of_draining.set()
                if not reply.only_here:
                    self._moved.set()
        else:
            log.warning("the control plane does not know this runtime any more: registering again")
            await self._register()

    # --- desired state ------------------------------------------------------------------------------

    async def _poll(self) -> None:
        while True:
            await self._insist(self._read_desired)

    async def _read_desired(self) -> None:
        state = await self._control_plane.desired_state(
            self._settings.runtime_id, self._wanted.revision, self._settings.poll_seconds
        )
        if state is None:
            await self._register()
            return
        self._apply(self._wanted.apply(state))
        self._state_read = True
        self._note_if_applied()

    def _apply(self, changes: Changes) -> None:
        for key in changes.remove:
            self._attempts.pop(key, None)
            self._residency.stop_routing(key)
            if key in self._serving:
                self._retire(self._serving.pop(key))
            self._report.forget_failures(key)
        for adapter in changes.load:
            self._to_load.put_nowait(adapter)
        if changes.remove or changes.load:
            log.info("desired: %d to load, %d to remove", len(changes.load), len(changes.remove))
            self._news.set()

    def _retire(self, adapter: AdapterId) -> None:
        """Let a version go, unless it is what serves (again) by now."""
        serving = self._serving.get(adapter.key)
        if serving != adapter:
            self._residency.forget(adapter)
            same_name = serving is not None and str(serving) == str(adapter)
            self._report.gone(adapter, replaced=same_name)
            self._news.set()

    # --- loading ------------------------------------------------------------------------------------

    async def _load_wanted(self) -> None:
        while True:
            adapter = await self._to_load.get()
            self._being_loaded += 1
            try:
                if self._wanted.still(adapter):
                    await self._load(adapter)
            finally:
                self._being_loaded -= 1
                self._note_if_applied()

    async def _load(self, adapter: AdapterServing) -> None:
        loop = asyncio.get_running_loop()
        domain = self._wanted.domain_of(adapter)
        try:
            if domain is None:
                raise NotReady(
                    "DomainNotAnnounced",
                    f"{adapter.domain}@{adapter.domain_version} was not sent to this runtime yet.",
                )
            loaded = await loop.run_in_executor(self._loaders, self._residency.load, adapter, domain)
        except HmiError as error:
            self._note_failure(adapter, error)
        except Exception:  # one broken adapter fails alone, whatever broke it
            log.exception("%s@%d could not be loaded", adapter.key, adapter.version)
            message = f"{adapter.key} could not be loaded; the runtime's log has the cause."
            self._note_failure(adapter, NotReady("AdapterLoadFailed", message))
        else:
            self._change_over(adapter, loaded)

    def _change_over(self, adapter: AdapterServing, loaded: LoadedAdapter) -> None:
        """Serve the new version, then let the old one go; a version that is wanted no more is dropped."""
        if not self._wanted.still(adapter):
            return
        new, old = loaded.route.adapter, self._serving.get(adapter.key)
        self._residency.serve(loaded)
        self._serving[adapter.key] = new
        self._attempts.pop(adapter.key, None)
        self._report.forget_failures(adapter.key)
        self._report.ready(new)
        if old is not None and old != new:
            asyncio.get_running_loop().call_later(_CHANGE_OVER_GRACE, self._retire, old)
        self._news.set()

    def _note_failure(self, adapter: AdapterServing, error: HmiError) -> None:
        """Report why an adapter cannot serve and try again later; an older version goes on serving."""
        log.warning("%s@%d: %s", adapter.key, adapter.version, error)
        if not self._wanted.still(adapter):
            return
        failure = LoadFailure(
            adapter=adapter.key, version=adapter.version, reason=error.reason, message=error.message
        )
        self._report.failed(AdapterId.of(adapter), failure)
        self._news.set()
        attempt = self._attempts[adapter.key] = self._attempts.get(adapter.key, 0) + 1
        delay = min(_LONGEST_LOAD_RETRY, 2.0**attempt)
        asyncio.get_running_loop().call_later(delay, self._to_load.put_nowait, adapter)

    def _note_if_applied(self) -> None:
        if self._state_read and self._to_load.empty() and not self._being_loaded:
            self._state_applied = True

    async def _insist(self, call: Callable[[], Awaitable[None]]) -> None:
        """Call until it succeeds; the control plane may be unavailable for any time."""
        await _RETRY.run_async(
            call, should_retry=lambda error: isinstance(error, HmiError), name="a call of the control plane"
        )
