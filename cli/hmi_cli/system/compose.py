"""The embedded default put together: one place makes every part and hands each what it needs."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Coroutine

from pydantic import SecretStr

from hmi_api.errors import InvalidInput
from hmi_api.internal.client import ControlPlaneClient
from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.settings import load_settings
from hmi_cli.errors import CliError, usage_error
from hmi_cli.system.home import Home
from hmi_cli.system.server import System
from hmi_cli.system.supervisor import Supervisor
from hmi_control_plane.app import create_app
from hmi_control_plane.auth import require_token
from hmi_control_plane.settings import Settings
from hmi_operator.embedded import EmbeddedController, FileResourceStore, SubprocessJobs, router
from hmi_operator.planning import Environment

RUNTIME_PROGRAM = [sys.executable, "-m", "hmi_runtime.server"]
RUNTIME_ID = "runtime-0"
RUNS_AT_ONCE = 2
"""One run reads, tokenises or starts while the other computes; each takes about a gigabyte of memory."""
LIMIT_DEFAULTS = {"HMI_MAX_RANK": "32", "HMI_MAX_BOTTLENECK": "64"}
"""The largest adapters where the environment says nothing; larger ones are refused when they are declared.

Every slot is as large as its largest adapter may be, so room for larger ones is room for fewer. These hold
whatever is trained when no size is asked for, and bottlenecks of twice that width.
"""
RUNTIME_DEFAULTS = {"HMI_HOST_BUDGET": str(1 << 30)}
"""Further settings of the runtime where the environment says nothing."""
NOT_FOR_CHILDREN = ("HMI_ADMIN_KEY", "HMI_API_KEY", "HMI_METRICS_PORT")


def compose(home: Home, url: str) -> System:
    """Return control plane, resource API, reconciler and runtime over a home folder, served at ``url``."""
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
        raise usage_error(f"the environment is wrong: {error.message}") from error
    app = create_app(settings)
    store = FileResourceStore(home.resources)
    environment = Environment(limits=limits)
    app.include_router(router(store, require_token(admin_key, "admin key"), environment))
    shared = {
        "HMI_CONTROL_PLANE_URL": url,
        "HMI_INTERNAL_TOKEN": token,
        "HMI_ARTIFACTS": settings.artifacts,
        # Training and serving share the cores: idle threads must sleep, not spin, or they starve the others.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        **limits.as_environment(),
    }
    jobs = SubprocessJobs(home.runs.resolve(), shared, concurrency=RUNS_AT_ONCE)
    reconciler = _reconciler(store, jobs, url, token, environment)
    return System(app, (reconciler, runtime(home, shared).run))


def embedded_limits() -> AdapterLimits:
    """Return the largest adapters that the runtime serves, for all parts. Raises ``InvalidInput``."""
    told = {name: os.environ.get(name, default) for name, default in LIMIT_DEFAULTS.items()}
    return load_settings(AdapterLimits, **{name.removeprefix("HMI_").lower(): v for name, v in told.items()})


def _reconciler(
    store: FileResourceStore, jobs: SubprocessJobs, url: str, token: str, environment: Environment
) -> Callable[[], Coroutine[object, object, None]]:
    async def run() -> None:
        stop = asyncio.Event()
        # The reconciler speaks to this very process over HTTP, as it would from a pod of its own.
        async with ControlPlaneClient(url, token) as control_plane:
            working = asyncio.create_task(
                EmbeddedController(store, control_plane, jobs, environment=environment).run(stop)
            )
            try:
                await asyncio.shield(working)
            except InvalidInput as error:  # another system's resources are in the same catalog
                raise CliError(error.message) from error
            finally:
                stop.set()
                with contextlib.suppress(InvalidInput):
                    await working

    return run


def runtime(home: Home, shared: dict[str, str]) -> Supervisor:
    """Return the supervisor of the one runtime of an embedded system."""
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
    """Return a port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
