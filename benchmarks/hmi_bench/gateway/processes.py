"""The processes of the gateway benchmark, and one tenant's adapter on the instant runtime."""

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from hmi_api.errors import NotReady
from hmi_api.internal.client import ControlPlaneClient
from hmi_api.internal.inference import InferRequest, InferRow
from hmi_api.internal.retry import RetryPolicy
from hmi_api.internal.runs import RunResult
from hmi_api.internal.runtimes import AdapterVersionRef, Heartbeat, RuntimeRegistration
from hmi_api.internal.trainer_client import TrainerClient
from hmi_api.names import Tenant
from hmi_api.security.bearer import TokenSource
from hmi_bench.gateway.client import Target
from hmi_bench.scale.catalog import (
    DOMAIN,
    NAMESPACE,
    adapter_name,
    adapter_record,
    adapter_result,
    adapter_run,
    domain_record,
    domain_result,
    domain_run,
)
from hmi_cli.system.server import free_port
from hmi_control_plane.settings import Settings

MODEL = adapter_name(1)
TEXT = "The pump in bay four lost pressure again after the seal was replaced."

_START_SECONDS = 60.0
_LOG = "control-plane.log"
_INSTANT_RUNTIME = Path(__file__).with_name("instant_runtime.py")


@dataclass(frozen=True)
class Stage:
    """The same request to the runtime directly and through the gateway."""

    direct: Target
    through: Target
    folder: Path
    gateway_process: int

    def gateway_cpu_seconds(self) -> float:
        """Return the processor time of the gateway's process so far, over all threads."""
        fields = Path(f"/proc/{self.gateway_process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ControlPlane:
    """A control plane process with its gateway, on SQLite."""

    url: str
    port: int
    token: str
    admin_key: str
    process: int

    def client(self) -> ControlPlaneClient:
        """Return a client of the internal API whose calls wait until the control plane is ready."""
        patient = RetryPolicy(first_wait=0.1, longest_wait=0.1, patience=_START_SECONDS)
        return ControlPlaneClient(self.url, self.token, retry=patient)

    def complete_run(self, run_id: str, result: RunResult) -> None:
        """Publish a run's result as its trainer does."""
        with TrainerClient(self.url, TokenSource(self.token), run_id) as trainer:
            trainer.complete_run(result)

    def create_key(self, tenant: str) -> str:
        """Return a new API key of a tenant."""
        created = httpx.post(
            f"{self.url}/admin/v1/tenants/{tenant}/keys",
            json={"name": "b"},
            headers={"Authorization": f"Bearer {self.admin_key}"},
            trust_env=False,
        )
        key: str = created.raise_for_status().json()["key"]
        return key


@contextmanager
def running_control_plane(folder: Path, artifacts: str) -> Iterator[ControlPlane]:
    """Start a control plane with its files in ``folder``, and stop it at the end."""
    token, admin_key = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    port = free_port()
    settings = Settings.variables(
        database_url=f"sqlite:///{folder / 'catalog.db'}",
        artifacts=artifacts,
        usage_dir=folder / "usage",
        internal_token=token,
        admin_key=admin_key,
        port=port,
        runtime_lost_after_seconds=86400,
    )
    command = [sys.executable, "-m", "hmi_control_plane"]
    with (
        (folder / _LOG).open("w") as log,
        running(command, {**os.environ, **settings}, log) as process,
    ):
        yield ControlPlane(f"http://127.0.0.1:{port}", port, token, admin_key, process.pid)


@contextmanager
def served_stage(folder: Path) -> Iterator[Stage]:
    """Start both processes, with their files in ``folder``, and stop them at the end."""
    with (
        running_control_plane(folder, str(folder / "artifacts")) as plane,
        running([sys.executable, str(_INSTANT_RUNTIME)]) as runtime,
    ):
        runtime_port = int(_first_line(runtime))
        try:
            asyncio.run(_register(plane, f"http://127.0.0.1:{runtime_port}"))
        except NotReady as error:
            log = (folder / _LOG).read_text()
            raise RuntimeError(f"the control plane is not ready: {log[-2000:]}") from error
        key = plane.create_key(NAMESPACE)
        row = InferRow(adapter=f"{NAMESPACE}/{MODEL}", text=TEXT)
        direct = InferRequest(request_id="bench", rows=[row]).model_dump_json(by_alias=True).encode()
        yield Stage(
            direct=Target(runtime_port, "/internal/v1/infer", plane.token, direct),
            through=Target(
                plane.port, "/classify", key, f'{{"model": "{MODEL}", "input": "{TEXT}"}}'.encode()
            ),
            folder=folder,
            gateway_process=plane.process,
        )


@contextmanager
def running(
    command: list[str], environment: Mapping[str, str] | None = None, log: IO[str] | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """Run a process until the block ends. Its output goes to ``log``, or to a pipe if there is none."""
    output = log or subprocess.PIPE
    with subprocess.Popen(
        command, env=environment, stdout=output, stderr=log, text=True
    ) as process:  # leaving closes its pipe and waits
        try:
            yield process
        finally:
            process.terminate()


def _first_line(process: "subprocess.Popen[str]") -> str:
    if process.stdout is None:
        raise ValueError("the process's output goes to a file")
    return process.stdout.readline()


async def _register(plane: ControlPlane, runtime_url: str) -> None:
    """Register a runtime and one adapter that is ready on it, by the calls of operator, trainer and runtime.

    The first call waits until the control plane is ready.
    """

    async with plane.client() as client:
        registration = RuntimeRegistration(
            url=runtime_url, device="cpu", capacity_bytes=10**9, incarnation="one"
        )
        await client.register_runtime("instant", registration)
        await client.ensure_tenant(Tenant(NAMESPACE))
        await client.declare("Domain", f"{NAMESPACE}/{DOMAIN}", domain_record())
        plane.complete_run((await client.create_run(domain_run())).id, domain_result())
        view = await client.domain(f"{NAMESPACE}/{DOMAIN}")
        domain = view.current if view is not None else None
        if domain is None:
            raise RuntimeError("the Domain's run made no version")
        await client.declare("TaskAdapter", f"{NAMESPACE}/{MODEL}", adapter_record(1, NAMESPACE))
        run = await client.create_run(adapter_run(1, NAMESPACE, domain))
        plane.complete_run(run.id, adapter_result(1, domain))
        ready = [AdapterVersionRef(adapter=f"{NAMESPACE}/{MODEL}", version=1)]
        await client.heartbeat("instant", Heartbeat(incarnation="one", ready=ready))
