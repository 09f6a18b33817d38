"""The embedded system: all planes composed in this process, the runtime in a child process."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from types import FrameType

import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

from hmi_api.errors import InvalidInput
from hmi_api.internal.client import ControlPlaneClient
from hmi_api.internal.trainer import TrainingSettings
from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.settings import load_settings
from hmi_cli.errors import CliError, UsageError
from hmi_cli.system.home import HomeFolder
from hmi_cli.system.supervisor import Supervisor
from hmi_control_plane.app import create_app
from hmi_control_plane.auth.guards import require_token
from hmi_control_plane.settings import Settings
from hmi_operator.embedded import EmbeddedController, FileResourceStore, SubprocessJobs, router
from hmi_operator.planning import Environment

OPEN_STREAMS_END_AFTER_S = 3
KEEP_ALIVE_S = 60
"""Longer than clients keep idle connections (httpx: 5 s): they close them, not the server under a request."""


@dataclass(frozen=True)
class EmbeddedSystem:
    """The application to serve and the background tasks beside it."""

    app: FastAPI
    tasks: tuple[Callable[[], Coroutine[object, object, None]], ...]
    """Each runs until it is cancelled; if one ends, the system ends."""


class _Server(uvicorn.Server):
    """uvicorn without signal handling: the runtime must be drained before the server stops."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.startup_done = asyncio.Event()
        """Set after the start has succeeded (``started``) or failed."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.startup_done.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Never called, as no signal is captured."""


def listen(host: str, port: int) -> socket.socket:
    """Bind an address before anything is started; port 0 takes a free one. Raise ``CliError`` if it fails."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CliError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            hint="choose another with --port; 0 takes any that is free",
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the address that clients on this machine use."""
    host, port = listener.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{name}:{port}"


async def serve(system: EmbeddedSystem, listener: socket.socket, announce: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM, then stop the controller, drain the runtime and stop the server.

    The server is last, since the drained runtime deregisters at the control plane.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    config = uvicorn.Config(
        system.app,
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=OPEN_STREAMS_END_AFTER_S,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await server.startup_done.wait()
    if server.started:
        announce()
        await _run_tasks(system, serving, stop)
    server.should_exit = True
    await serving
    if not server.started:
        raise CliError("the control plane did not start", hint="the log above says why")


async def _run_tasks(system: EmbeddedSystem, serving: "asyncio.Task[None]", stop: asyncio.Event) -> None:
    """Run the background tasks until ``stop`` is set, or until one of them or the server ends."""
    stopped = asyncio.create_task(stop.wait())
    tasks = [asyncio.create_task(run()) for run in system.tasks]
    done, _ = await asyncio.wait([stopped, serving, *tasks], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for ended, result in zip(tasks, results, strict=True):
        if ended in done and isinstance(result, BaseException):
            raise result


RUNTIME_PROGRAM = [sys.executable, "-m", "hmi_runtime.server"]
RUNTIME_ID = "runtime-0"
RUNS_AT_ONCE = 2
"""One run reads or tokenises while the other computes; each takes about a gigabyte of memory."""
LIMIT_DEFAULTS = {"HMI_MAX_RANK": "32", "HMI_MAX_BOTTLENECK": "64"}
"""Defaults for the largest adapter; larger ones are refused when they are declared.

Every slot has the size of the largest adapter, so a larger limit means fewer slots. These suffice for every
default size of training, and for bottlenecks of twice that width.
"""
RUNTIME_DEFAULTS = {"HMI_HOST_BUDGET": str(1 << 30)}
"""Defaults for other settings of the runtime."""
NOT_FOR_CHILDREN = ("HMI_ADMIN_KEY", "HMI_API_KEY", "HMI_METRICS_PORT")


def compose(home: HomeFolder, url: str) -> EmbeddedSystem:
    """Compose control plane, resource API, controller and runtime over a home folder, served at ``url``."""
    token, admin_key = home.internal_token(), SecretStr(home.admin_key())
    try:
        settings = load_settings(
            Settings,
            database_url=f"sqlite:///{home.database.resolve()}",
            artifacts=str(home.artifacts.resolve()),
            usage_dir=home.usage.resolve(),
            internal_token=SecretStr(token),
            admin_key=admin_key,
        )
        limits = embedded_limits()
    except InvalidInput as error:
        raise UsageError(f"the environment is wrong: {error.message}") from error
    app = create_app(settings)
    store = FileResourceStore(home.resources)
    environment = Environment(limits=limits)
    app.include_router(router(store, require_token(admin_key, "admin key"), environment))
    shared = {
        **TrainingSettings.variables(
            control_plane_url=url, internal_token=token, artifacts=settings.artifacts
        ),
        # Training and serving share the cores: idle threads that spin would slow down the others.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        **limits.as_environment(),
    }
    jobs = SubprocessJobs(home.runs.resolve(), shared, concurrency=RUNS_AT_ONCE)
    controller = _controller(store, jobs, url, token, environment)
    return EmbeddedSystem(app, (controller, runtime(home, shared).run))


def embedded_limits() -> AdapterLimits:
    """Return the size limits of adapters. Raise ``InvalidInput`` if the environment is wrong."""
    values = {name: os.environ.get(name, default) for name, default in LIMIT_DEFAULTS.items()}
    return load_settings(
        AdapterLimits, **{name.removeprefix("HMI_").lower(): v for name, v in values.items()}
    )


def _controller(
    store: FileResourceStore, jobs: SubprocessJobs, url: str, token: str, environment: Environment
) -> Callable[[], Coroutine[object, object, None]]:
    async def run() -> None:
        stop = asyncio.Event()
        # The controller calls this process over HTTP, as it would from a pod of its own.
        async with ControlPlaneClient(url, token) as control_plane:
            working = asyncio.create_task(
                EmbeddedController(store, control_plane, jobs, environment=environment).run(stop)
            )
            try:
                await asyncio.shield(working)
            except InvalidInput as error:  # the catalog has resources of another system
                raise CliError(error.message) from error
            finally:
                stop.set()
                with contextlib.suppress(InvalidInput):
                    await working

    return run


def runtime(home: HomeFolder, shared: dict[str, str]) -> Supervisor:
    """Return the supervisor of the embedded system's only runtime."""
    own = {
        "HMI_RUNTIME_ID": RUNTIME_ID,
        "HMI_RUNTIME_URL": f"http://127.0.0.1:{free_port()}",
        "HMI_CACHE_DIR": str(home.cache.resolve()),
    }
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_FOR_CHILDREN}
    return Supervisor(
        "runtime",
        RUNTIME_PROGRAM,
        {**RUNTIME_DEFAULTS, **inherited, **shared, **own},
        home.logs / "runtime.log",
        pid_file=home.path / "runtime.pid",
    )


def free_port() -> int:
    """Return a port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
