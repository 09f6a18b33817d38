"""Runtimes: registration, heartbeats, and the long poll for the desired state."""

import asyncio
import contextlib
from collections.abc import Iterator
from threading import Lock
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from hmi_api.internal.precision import EngineReports, PrecisionRequest, RecordedPrecision
from hmi_api.internal.runtimes import DesiredState, Heartbeat, HeartbeatReply, RuntimeRegistration
from hmi_api.internal.window_counts import WindowCountReport
from hmi_api.security.internal_auth import Role
from hmi_control_plane.api import NO_CONTENT
from hmi_control_plane.auth.guards import RoleGuard
from hmi_control_plane.catalog import desired_state, placement, runtimes
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.http.parameters import RuntimeId
from hmi_control_plane.window_counts.reports import record_report


class ChangeSignal:
    """Wakes long polls after a commit of this process; commits of others are found by polling."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def notify(self) -> None:
        """Wake all waiting long polls; call it after a commit, from any thread."""
        with self._lock:
            for event, loop in self._waiting.items():
                with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                    loop.call_soon_threadsafe(event.set)

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[asyncio.Event]:
        """Return an event that ``notify`` sets while the context lasts."""
        event = asyncio.Event()
        with self._lock:
            self._waiting[event] = asyncio.get_running_loop()
        try:
            yield event
        finally:
            with self._lock:
                del self._waiting[event]


_POLL_SECONDS = 1.0


def build(
    database: Database, guard: RoleGuard, changes: ChangeSignal, *, wait_limit_seconds: float
) -> APIRouter:
    """Return the routes under ``/runtimes``; a poll waits for ``wait_limit_seconds`` at most."""
    router = APIRouter(prefix="/runtimes", route_class=guard.only(Role.RUNTIME))

    def place_and_notify() -> None:
        placement.place_missing_replicas(database)
        changes.notify()

    @router.put("/{runtime_id}", **NO_CONTENT)
    def register(runtime_id: RuntimeId, registration: RuntimeRegistration) -> None:
        """Register a runtime that has started."""
        with database.write() as session:
            runtimes.register(session, runtime_id, registration)
        place_and_notify()

    # Defaults are left out: a runtime of an older version refuses fields that it does not know.
    @router.post("/{runtime_id}/heartbeat", response_model_exclude_defaults=True)
    def heartbeat(runtime_id: RuntimeId, beat: Heartbeat) -> HeartbeatReply:
        """Record a runtime's report."""
        with database.write() as session:
            outcome = runtimes.heartbeat(session, runtime_id, beat)
        if outcome.fleet_changed:
            place_and_notify()
        return outcome.reply

    @router.post("/{runtime_id}/window-counts", **NO_CONTENT)
    def report_window_counts(runtime_id: RuntimeId, report: WindowCountReport) -> None:
        """Record the windows that a runtime looked up since its last report."""
        with database.write() as session:
            record_report(session, report)

    @router.post("/{runtime_id}/precision-choices")
    def record_precision(runtime_id: RuntimeId, request: PrecisionRequest) -> RecordedPrecision:
        """Read the precision choice of a runtime's pool; record the proposal if there is none."""
        with database.read() as session:
            found = runtimes.find_choice(session, request.key)
        if found is None and request.proposal is not None:
            with database.write() as session:
                found = runtimes.record_choice(session, runtime_id, request.key, request.proposal)
        return RecordedPrecision(choice=found)

    @router.put("/{runtime_id}/engines", **NO_CONTENT)
    def report_engines(runtime_id: RuntimeId, reports: EngineReports) -> None:
        """Record the precision and kernel of each base model on a runtime."""
        with database.write() as session:
            runtimes.record_engines(session, runtime_id, reports)

    @router.delete("/{runtime_id}", **NO_CONTENT)
    def deregister(runtime_id: RuntimeId) -> None:
        """Deregister a runtime that has drained."""
        with database.write() as session:
            runtimes.deregister(session, runtime_id)
        place_and_notify()

    @router.get("/{runtime_id}/desired")
    async def read_desired(
        runtime_id: RuntimeId,
        since: Annotated[int, Query(ge=0, description="Revision read last; 0 for everything.")] = 0,
        wait: Annotated[float, Query(ge=0, le=3600, description="Seconds to wait for a change.")] = 0.0,
    ) -> DesiredState:
        """Read the desired state, as soon as it changed or after ``wait`` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(wait, wait_limit_seconds)
        with changes.subscribe() as changed:
            while not await run_in_threadpool(_has_changed, database, runtime_id, since):
                left = deadline - loop.time()
                if left <= 0:
                    break
                await _wait(changed, min(left, _POLL_SECONDS))
        return await run_in_threadpool(_read, database, runtime_id, since)

    return router


async def _wait(changed: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await changed.wait()
    except TimeoutError:
        return
    changed.clear()


def _has_changed(database: Database, runtime_id: str, since: int) -> bool:
    with database.read() as session:
        return desired_state.has_changed(session, runtime_id, since)


def _read(database: Database, runtime_id: str, since: int) -> DesiredState:
    with database.read() as session:
        state = desired_state.load_desired_state(session, runtime_id, since)
        acknowledges = not state.full and desired_state.has_acknowledged_removals(session, runtime_id, since)
    if acknowledges:
        with database.write() as session:
            desired_state.delete_acknowledged_removals(session, runtime_id, since)
    return state
