"""Makes a runtime follow its desired state: register, poll, load, report.

The control plane may be unavailable at any time: loaded adapters keep serving, and calls are retried.
"""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Executor

from hmi_api.errors import HmiError, NotReady
from hmi_api.internal.client import ControlPlaneClient, Refused
from hmi_api.internal.precision import MAX_ENGINES, EngineReport, EngineReports
from hmi_api.internal.retry import RetryPolicy
from hmi_api.internal.runtimes import (
    AdapterServing,
    AdapterVersionRef,
    Heartbeat,
    HeartbeatReply,
    RuntimeRegistration,
)
from hmi_runtime.cache.adapter_cache import AdapterId
from hmi_runtime.server.adapter_states import AdapterStates
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.server.metrics import resident_bytes
from hmi_runtime.server.settings import RuntimeSettings
from hmi_runtime.server.window_reports import WindowReporter
from hmi_runtime.serving.loaded import LoadedAdapter
from hmi_runtime.serving.window_counts import WindowCounter

log = logging.getLogger(__name__)

_RETRY = RetryPolicy(first_wait=0.2, longest_wait=5.0)
_LOAD_RETRY = RetryPolicy(first_wait=2.0, longest_wait=60.0)
_DRAINING_HEARTBEAT = 0.5
_LONGEST_DRAINING_ANSWER = 5.0
"""Seconds to wait for the control plane to answer the draining heartbeat; before, nothing can move."""

_LEAST_HEARTBEAT_INTERVAL = 0.1
"""Seconds between heartbeats, so that ten thousand loads are not ten thousand calls."""

_REPLACED_GRACE = 2.0
"""Seconds that a replaced version stays loaded, for rows that were accepted just before."""


class ControlLoop:
    """Calls the control plane for one runtime. Runs on one event loop; only ``loader.load`` has threads."""

    def __init__(
        self,
        settings: RuntimeSettings,
        control_plane: ControlPlaneClient,
        loader: AdapterLoader,
        threads: Executor,
        windows: WindowCounter,
    ) -> None:
        self._settings = settings
        self._control_plane = control_plane
        self._loader = loader
        self._threads = threads
        self._incarnation = uuid.uuid4().hex
        self._windows = WindowReporter(
            control_plane, settings.runtime_id, self._incarnation, windows, settings.window_counts_seconds
        )
        self._states = AdapterStates()
        self._load_queue: asyncio.Queue[AdapterServing] = asyncio.Queue()
        self._loading = 0
        self._report_due = asyncio.Event()
        self._reported_engines: list[EngineReport] = []
        self._registered = False
        self._state_read = False
        self._state_applied = False
        self.draining = False
        self._draining_reported = asyncio.Event()
        self._moved = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether the runtime is registered and has loaded its first desired state, or found it broken."""
        return self._registered and self._state_applied and not self.draining

    @property
    def why_not_ready(self) -> str:
        """What ``ready`` waits for."""
        if self.draining:
            return "draining"
        return "loading" if self._state_read else "registering with the control plane"

    async def run(self) -> None:
        """Run until cancelled."""
        await self._retry(self._register)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll())
            tasks.create_task(self._send_heartbeats())
            tasks.create_task(self._share_table_memory())
            tasks.create_task(self._windows.run())
            for _ in range(self._settings.loader_threads):
                tasks.create_task(self._load_from_queue())

    async def deregister(self) -> None:
        """Report the last windows, and that this runtime is gone. A failure is only logged."""
        await self._windows.report_last()
        try:
            await self._control_plane.deregister_runtime(self._settings.runtime_id)
        except HmiError as error:
            log.warning("could not deregister at the control plane: %s", error)

    def start_draining(self) -> None:
        """Report in the next heartbeat, which is sent at once, that this runtime is draining."""
        self.draining = True
        self._report_due.set()

    async def wait_until_moved(self, limit: float) -> None:
        """Wait until other runtimes serve all adapters that only this one served, at most ``limit`` seconds.

        Return early if the control plane does not answer, or answers that there is no other runtime.
        """
        if not self._registered:
            return
        try:
            async with asyncio.timeout(min(limit, _LONGEST_DRAINING_ANSWER)):
                await self._draining_reported.wait()
            async with asyncio.timeout(limit):
                await self._moved.wait()
        except TimeoutError:
            log.warning("stopping before all adapters have moved")

    # --- registration and heartbeats ----------------------------------------------------------------

    async def _register(self) -> None:
        settings = self._settings
        registration = RuntimeRegistration(
            url=settings.runtime_url,
            device=settings.device,
            capacity_bytes=self._capacity,
            incarnation=self._incarnation,
            host_bytes=settings.host_budget,
            table_bytes=settings.table_budget,
        )
        try:
            await self._control_plane.register_runtime(settings.runtime_id, registration)
        except Refused:
            # A control plane of an older version refuses fields that it does not know.
            together = registration.model_copy(update={"host_bytes": None, "table_bytes": None})
            await self._control_plane.register_runtime(settings.runtime_id, together)
        self._states.revision = 0
        self._states.report_all_again()
        self._reported_engines = []
        self._registered = True
        self._report_due.set()
        log.info("registered as %s", settings.runtime_id)

    @property
    def _capacity(self) -> int:
        return self._settings.host_budget + self._settings.table_budget

    async def _send_heartbeats(self) -> None:
        """Send a heartbeat after every change, and at least every ``heartbeat_seconds``."""
        while True:
            await self._retry(self._heartbeat)
            await asyncio.sleep(_LEAST_HEARTBEAT_INTERVAL)
            try:
                pause = self._settings.heartbeat_seconds
                async with asyncio.timeout(min(pause, _DRAINING_HEARTBEAT) if self.draining else pause):
                    await self._report_due.wait()
            except TimeoutError:
                pass  # nothing has changed: report that this runtime is alive

    async def _share_table_memory(self) -> None:
        """Let tables that are looked up more have more of the memory, now and then."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._settings.heartbeat_seconds)
            try:
                await loop.run_in_executor(self._threads, self._loader.table_memory.rebalance)
            except (HmiError, OSError):
                log.exception("the tables' memory could not be shared again")

    async def _heartbeat(self) -> None:
        self._report_due.clear()
        draining = self.draining
        report = self._states.next_report()
        used = self._loader.cache.host_used + self._loader.table_memory.host_bytes
        reply = await self._send(
            Heartbeat(
                incarnation=self._incarnation,
                ready=_version_refs(report.ready),
                gone=_version_refs(report.gone),
                failed=list(report.failed),
                resident=resident_bytes(self._loader),
                free_bytes=max(0, self._capacity - used),
                queue_depth=self._loader.pipeline.unanswered,
                draining=draining,
            )
        )
        if reply.known:
            self._states.acknowledge(report)
            await self._report_engines()
            if draining:
                self._draining_reported.set()
                if not reply.only_here:
                    self._moved.set()
        else:
            log.warning("the control plane no longer knows this runtime: registering again")
            await self._register()

    async def _send(self, beat: Heartbeat) -> HeartbeatReply:
        try:
            return await self._control_plane.heartbeat(self._settings.runtime_id, beat)
        except Refused:
            # A control plane of an older version refuses failures of versions that serve.
            failed = [failure for failure in beat.failed if not failure.serves]
            if len(failed) == len(beat.failed):
                raise
            beat = beat.model_copy(update={"failed": failed})
            return await self._control_plane.heartbeat(self._settings.runtime_id, beat)

    async def _report_engines(self) -> None:
        """Report the engines if they have changed. An older control plane does not know this call."""
        engines = [engine.precision for engine in self._loader.pipeline.engines()]
        if engines == self._reported_engines:
            return
        reports = EngineReports(
            incarnation=self._incarnation,
            pool=self._settings.pool,
            processor=self._loader.chooser.processor,
            engines=engines[:MAX_ENGINES],
        )
        try:
            await self._control_plane.report_engines(self._settings.runtime_id, reports)
        except HmiError as error:  # not worth another heartbeat: the next one reports again
            log.warning("the engines could not be reported: %s", error)
        else:
            self._reported_engines = engines

    # --- desired state ------------------------------------------------------------------------------

    async def _poll(self) -> None:
        while True:
            await self._retry(self._follow_desired_state)

    async def _follow_desired_state(self) -> None:
        state = await self._control_plane.desired_state(
            self._settings.runtime_id, self._states.revision, self._settings.poll_seconds
        )
        if state is None:  # the control plane does not know this runtime
            await self._register()
            return
        changes = self._states.apply(state)
        for key in changes.remove:
            self._loader.pipeline.deactivate(key)
            self._unload(self._states.remove(key))
        for adapter in changes.load:
            self._load_queue.put_nowait(adapter)
        if changes.remove or changes.load:
            log.info("desired state: %d to load, %d to remove", len(changes.load), len(changes.remove))
            self._report_due.set()
        self._state_read = True
        self._check_state_applied()

    def _retire(self, version: AdapterId) -> None:
        self._unload(self._states.retire(version))

    def _unload(self, adapter: LoadedAdapter | None) -> None:
        if adapter is not None:
            self._loader.unload(adapter)
            self._report_due.set()

    # --- loading ------------------------------------------------------------------------------------

    async def _load_from_queue(self) -> None:
        while True:
            adapter = await self._load_queue.get()
            self._loading += 1
            try:
                if self._states.is_desired(adapter):
                    await self._load(adapter)
            finally:
                self._loading -= 1
                self._check_state_applied()

    async def _load(self, adapter: AdapterServing) -> None:
        loop = asyncio.get_running_loop()
        domain = self._states.domain_of(adapter)
        try:
            if domain is None:
                raise NotReady(
                    "DomainNotAnnounced",
                    f"{adapter.domain}@{adapter.domain_version} was not sent to this runtime yet.",
                )
            serving = self._states.serving(adapter.key)
            loaded = await loop.run_in_executor(self._threads, self._loader.load, adapter, domain, serving)
        except HmiError as error:
            self._handle_failure(adapter, error)
        except Exception:  # one broken adapter fails alone, whatever the cause
            log.exception("%s@%d could not be loaded", adapter.key, adapter.version)
            message = f"{adapter.key} could not be loaded; the runtime's log has the cause."
            self._handle_failure(adapter, NotReady("AdapterLoadFailed", message))
        else:
            self._serve(adapter, loaded)

    def _serve(self, adapter: AdapterServing, loaded: LoadedAdapter) -> None:
        """Route rows to a loaded version and retire the previous one, unless it is no longer desired."""
        if not self._states.is_desired(adapter):
            return
        self._loader.activate(loaded)
        replaced = self._states.record_loaded(loaded)
        if replaced is not None:
            asyncio.get_running_loop().call_later(_REPLACED_GRACE, self._retire, replaced)
        self._report_due.set()

    def _handle_failure(self, adapter: AdapterServing, error: HmiError) -> None:
        """Report why an adapter could not be loaded and retry later.

        An older version keeps serving, or this version on an older table of its Domain.
        """
        log.warning("%s@%d: %s", adapter.key, adapter.version, error)
        if not self._states.is_desired(adapter):
            return
        attempts = self._states.record_failure(adapter, error)
        self._report_due.set()
        delay = _LOAD_RETRY.wait(attempts)
        asyncio.get_running_loop().call_later(delay, self._load_queue.put_nowait, adapter)

    def _check_state_applied(self) -> None:
        if self._state_read and self._load_queue.empty() and not self._loading:
            self._state_applied = True

    async def _retry(self, call: Callable[[], Awaitable[None]]) -> None:
        """Repeat a call until it succeeds; the control plane may be unavailable for any time."""
        await _RETRY.run_async(
            call, should_retry=lambda error: isinstance(error, HmiError), name="a call of the control plane"
        )


def _version_refs(adapters: Collection[AdapterId]) -> list[AdapterVersionRef]:
    versions = sorted({(adapter.key, adapter.version) for adapter in adapters})
    return [AdapterVersionRef(adapter=key, version=version) for key, version in versions]
