"""A runtime process: its parts wired together, its start and its peaceful end."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from types import FrameType

import torch
import uvicorn
from fastapi import FastAPI

from hmi_api.internal.client import ONE_ATTEMPT, ControlPlaneClient
from hmi_api.security.request_body import BodyLimit, RequestBodyMiddleware
from hmi_api.servers import listening_socket, serving_metrics
from hmi_runtime.artifacts import ArtifactStore
from hmi_runtime.outbound import configure
from hmi_runtime.server.app import build_app, refuse_body, rendered_metrics
from hmi_runtime.server.control_loop import ControlLoop
from hmi_runtime.server.door import InternalDoor
from hmi_runtime.server.metrics import RuntimeMetrics
from hmi_runtime.server.residency import Residency
from hmi_runtime.server.settings import RuntimeSettings

log = logging.getLogger(__name__)


class RuntimeProcess:
    """Everything one process runs. ``app`` starts and stops the rest with itself."""

    def __init__(self, settings: RuntimeSettings) -> None:
        self._settings = settings
        # Apart: bringing up new versions, which may take long, never keeps a waiting row's adapter back.
        self._bringers = ThreadPoolExecutor(settings.loader_threads, thread_name_prefix="bring-up")
        self._loaders = ThreadPoolExecutor(settings.loader_threads, thread_name_prefix="load")
        metrics = RuntimeMetrics()
        self._residency = Residency(
            settings,
            ArtifactStore(settings.artifacts),
            self._loaders,
            cache_events=metrics,
            pipeline_events=metrics,
        )
        self._callers = settings.caller_check()
        self._control_plane = ControlPlaneClient(
            settings.control_plane_url, settings.token_source(), retry=ONE_ATTEMPT
        )
        self._control = ControlLoop(settings, self._control_plane, self._residency, self._bringers)
        self._metrics = metrics
        self.app = build_app(
            self._residency,
            self._control,
            metrics,
            metrics_here=settings.metrics_port is None,
            lifespan=self._lifespan,
        )
        self.app.add_middleware(
            RequestBodyMiddleware,
            default=BodyLimit(settings.body_limit_bytes, settings.body_seconds),
            refuse=refuse_body,
        )
        self.app.add_middleware(InternalDoor, check=self._callers)  # the last one added is the outermost

    async def leave(self) -> None:
        """Say that this runtime goes, serve until others do what only it did, then take no new rows."""
        self._control.start_draining()
        await self._control.moved(self._settings.move_seconds)
        self._residency.pipeline.refuse_new()

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        control = asyncio.create_task(self._control.run())
        control.add_done_callback(_exit_if_failed)
        host = self._settings.listen_address[0]
        render = partial(rendered_metrics, self._residency, self._metrics)
        with serving_metrics(host, self._settings.metrics_port, render):
            try:
                yield
            finally:
                await self._end(control)

    async def _end(self, control: "asyncio.Task[None]") -> None:
        self._control.start_draining()
        drained = await asyncio.to_thread(self._residency.pipeline.drain, self._settings.drain_seconds)
        log.info("drained" if drained else "stopped with rows unanswered")
        control.cancel()
        await asyncio.gather(control, return_exceptions=True)
        await self._control.say_goodbye()
        await self._control_plane.close()
        await self._callers.close()
        for executor in (self._bringers, self._loaders):
            executor.shutdown(wait=False, cancel_futures=True)


def _exit_if_failed(control: "asyncio.Task[None]") -> None:
    """End the process if the control loop did: a runtime that is told nothing serves ever less."""
    if not control.cancelled() and (error := control.exception()) is not None:
        log.critical("the control loop failed", exc_info=error)
        signal.raise_signal(signal.SIGTERM)


class _Server(uvicorn.Server):
    """Lets the process leave in its own time at the first signal; at the second it stops at once."""

    def __init__(self, process: RuntimeProcess, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._process = process
        self._leaving: asyncio.Task[None] | None = None
        self._told = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen and start; ``::`` takes IPv4 and IPv6."""
        try:
            sockets = sockets or [listening_socket(self.config.host, self.config.port)]
        except OSError as error:
            sys.exit(f"Cannot listen: {error}")
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self._told:
            super().handle_exit(sig, frame)
            return
        self._told = True
        # The handler runs in the loop's own thread, between two of its steps.
        asyncio.get_running_loop().call_soon_threadsafe(self._leave, sig)

    def _leave(self, sig: int) -> None:
        self._leaving = asyncio.create_task(self._process.leave())
        self._leaving.add_done_callback(lambda _: super(_Server, self).handle_exit(sig, None))


def build_server(settings: RuntimeSettings) -> uvicorn.Server:
    """Return the server of a runtime process, which drains when it is told to stop."""
    process = RuntimeProcess(settings)
    host, port = settings.listen_address
    config = uvicorn.Config(
        process.app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )
    return _Server(process, config)


def serve(settings: RuntimeSettings) -> None:
    """Run a runtime process until SIGTERM or SIGINT."""
    configure(settings.address_policy())
    if settings.threads:
        torch.set_num_threads(settings.threads)
    build_server(settings).run()
