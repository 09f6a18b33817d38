"""A runtime process: composition, start, draining and shutdown."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

import torch
import uvicorn
from fastapi import FastAPI

from hmi_api.http_server import DrainingServer
from hmi_api.internal.client import ONE_ATTEMPT, ControlPlaneClient
from hmi_api.security.request_body import BodyLimit, RequestBodyMiddleware
from hmi_api.servers import serving_metrics
from hmi_runtime.adapters.kernels import missing_native
from hmi_runtime.artifacts.store import ArtifactStore
from hmi_runtime.outbound.guard import configure
from hmi_runtime.precision.chooser import check_setting
from hmi_runtime.precision.records import ControlPlaneRecords
from hmi_runtime.server.app import InternalAuth, body_error, build_app, render_metrics
from hmi_runtime.server.control_loop import ControlLoop
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.server.metrics import RuntimeMetrics
from hmi_runtime.server.settings import RuntimeSettings
from hmi_runtime.serving.cores import available_cores, take_turns_often

log = logging.getLogger(__name__)


class RuntimeProcess:
    """All parts of one process; the lifespan of ``app`` starts and stops the others."""

    def __init__(self, settings: RuntimeSettings) -> None:
        self._settings = settings
        # Two pools: loading new versions, which may take long, must not delay rows that wait for the cache.
        self._version_threads = ThreadPoolExecutor(settings.loader_threads, thread_name_prefix="load-version")
        self._cache_threads = ThreadPoolExecutor(settings.loader_threads, thread_name_prefix="load-cache")
        metrics = RuntimeMetrics()
        self._control_plane = ControlPlaneClient(
            settings.control_plane_url, settings.token_source(), retry=ONE_ATTEMPT
        )
        self._records = ControlPlaneRecords(self._control_plane, settings.runtime_id)
        self._loader = AdapterLoader(
            settings,
            ArtifactStore(settings.artifacts),
            self._cache_threads,
            cache_events=metrics,
            pipeline_events=metrics,
            table_events=metrics,
            records=self._records,
        )
        self._callers = settings.caller_authenticator()
        self._control = ControlLoop(
            settings, self._control_plane, self._loader, self._version_threads, metrics.windows
        )
        self._metrics = metrics
        self.app = build_app(
            self._loader,
            self._control,
            metrics,
            metrics_here=settings.metrics_port is None,
            lifespan=self._lifespan,
        )
        self.app.add_middleware(
            RequestBodyMiddleware,
            default=BodyLimit(settings.body_limit_bytes, settings.body_seconds),
            refuse=body_error,
        )
        self.app.add_middleware(InternalAuth, authenticator=self._callers)  # added last: runs first

    async def drain(self) -> None:
        """Report draining, serve until others have loaded this runtime's adapters, then refuse new rows."""
        self._control.start_draining()
        await self._control.wait_until_moved(self._settings.move_seconds)
        self._loader.pipeline.refuse_new()

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self._records.use_loop(asyncio.get_running_loop())
        control = asyncio.create_task(self._control.run())
        control.add_done_callback(_exit_if_failed)
        host = self._settings.listen_address[0]
        render = partial(render_metrics, self._loader, self._metrics)
        with serving_metrics(host, self._settings.metrics_port, render):
            try:
                yield
            finally:
                await self._shut_down(control)

    async def _shut_down(self, control: "asyncio.Task[None]") -> None:
        self._control.start_draining()
        drained = await asyncio.to_thread(self._loader.pipeline.drain, self._settings.drain_seconds)
        log.info("drained" if drained else "stopped before all rows had a result")
        control.cancel()
        await asyncio.gather(control, return_exceptions=True)
        await self._control.deregister()
        await self._control_plane.close()
        await self._callers.close()
        for executor in (self._version_threads, self._cache_threads):
            executor.shutdown(wait=False, cancel_futures=True)


def _exit_if_failed(control: "asyncio.Task[None]") -> None:
    """End the process if the control loop failed, since it would never load anything again."""
    if not control.cancelled() and (error := control.exception()) is not None:
        log.critical("the control loop failed", exc_info=error)
        signal.raise_signal(signal.SIGTERM)


def build_server(settings: RuntimeSettings) -> uvicorn.Server:
    """Return the server of a runtime process, which drains at SIGTERM."""
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
    return DrainingServer(config, lambda _: process.drain())


def _warn_of_missing_kernels(settings: RuntimeSettings) -> None:
    missing = missing_native() if settings.device == "cpu" else None
    if missing is not None:
        log.warning("%s", missing)


def serve(settings: RuntimeSettings) -> None:
    """Run a runtime process until SIGTERM or SIGINT.

    Raises ``InvalidInput`` PrecisionUnsupported if this machine cannot run the precision of the settings.
    """
    check_setting(settings.precision, torch.device(settings.device))
    _warn_of_missing_kernels(settings)
    configure(settings.address_policy())
    torch.set_num_threads(settings.threads or available_cores())  # of threads that load models
    take_turns_often()
    build_server(settings).run()
