"""A signal within this process that some runtime's desired state may have changed."""

import asyncio
import contextlib
from collections.abc import Iterator
from threading import Lock
from typing import Annotated

from fastapi import APIRouter, Query, Response
from starlette.concurrency import run_in_threadpool

from hmi_api.internal.runtimes import DesiredState, Heartbeat, HeartbeatReply, RuntimeRegistration
from hmi_api.security.internal_auth import Role
from hmi_control_plane.auth import RoleGuard
from hmi_control_plane.catalog import desired_state, placement, runtimes
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.http.parameters import RuntimeId


class ChangeSignal:
    """Wakes long polls early; they look by themselves too, since other processes' changes are not seen."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def notify(self) -> None:
        """Wake everyone who waits; to be called from any thread, after a commit."""
        with self._lock:
            for event, loop in self._waiting.items():
                with contextlib.suppress(RuntimeError):  # its loop was closed while we stood here
                    loop.call_soon_threadsafe(event.set)

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[asyncio.Event]:
        """Give an event that ``notify`` sets, for as long as the context lasts."""
        event = asyncio.Event()
        with self._lock:
            self._waiting[event] = asyncio.get_running_loop()
        try:
            yield event
        finally:
            with self._lock:
                del self._waiting[event]


_DONE = 204
_LOOK_AGAIN_SECONDS = 1.0


def build(
    database: Database, door: RoleGuard, changes: ChangeSignal, *, wait_limit_seconds: float
) -> APIRouter:
    """Return the routes under ``/runtimes``; a poll is held open for ``wait_limit_seconds`` at most."""
    router = APIRouter(prefix="/runtimes", route_class=door.only(Role.RUNTIME))

    def refill() -> None:
        placement.place_missing_replicas(database)
        changes.notify()

    @router.put("/{runtime_id}", status_code=_DONE)
    def register(runtime_id: RuntimeId, registration: RuntimeRegistration) -> Response:
        """Register a runtime that has started."""
        with database.write() as session:
            runtimes.register(session, runtime_id, registration)
        refill()
        return Response(status_code=_DONE)

    # Without what says nothing: a runtime of an older version knows no field that is new.
    @router.post("/{runtime_id}/heartbeat", response_model_exclude_defaults=True)
    def heartbeat(runtime_id: RuntimeId, beat: Heartbeat) -> HeartbeatReply:
        """Take a runtime's report."""
        with database.write() as session:
            outcome = runtimes.heartbeat(session, runtime_id, beat)
        if outcome.fleet_changed:
            refill()
        return outcome.reply

    @router.delete("/{runtime_id}", status_code=_DONE)
    def deregister(runtime_id: RuntimeId) -> Response:
        """Forget a runtime that has drained."""
        with database.write() as session:
            runtimes.deregister(session, runtime_id)
        refill()
        return Response(status_code=_DONE)

    @router.get("/{runtime_id}/desired")
    async def read_desired(
        runtime_id: RuntimeId,
        since: Annotated[int, Query(ge=0, description="Revision read last; 0 for everything.")] = 0,
        wait: Annotated[float, Query(ge=0, le=3600, description="Seconds to wait for news.")] = 0.0,
    ) -> DesiredState:
        """Read what to serve: at once when there is news, else after ``wait`` seconds at the latest."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(wait, wait_limit_seconds)
        with changes.subscribe() as changed:
            while not await run_in_threadpool(_is_news, database, runtime_id, since):
                left = deadline - loop.time()
                if left <= 0:
                    break
                await _wait(changed, min(left, _LOOK_AGAIN_SECONDS))
        return await run_in_threadpool(_read, database, runtime_id, since)

    return router


async def _wait(changed: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await changed.wait()
    except TimeoutError:
        return
    changed.clear()


def _is_news(database: Database, runtime_id: str, since: int) -> bool:
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
