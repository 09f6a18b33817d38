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
from hmi_api.internal.runs import RunResult, RunView
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


@contextmanager
def served_stage(folder: Path) -> Iterator[Stage]:
    """Start both processes, with their files in ``folder``, and stop them at the end."""
    token, admin = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = Settings.variables(
        database_url=f"sqlite:///{folder / 'catalog.db'}",
        artifacts=str(folder / "artifacts"),
        usage_dir=folder / "usage",
        internal_token=token,
        admin_key=admin,
        port=port,
        runtime_lost_after_seconds=86400,
    )
    log_file = folder / "control-plane.log"
    with (
        log_file.open("w") as log,
        _running([sys.executable, "-m", "hmi_control_plane"], {**os.environ, **settings}, log) as plane,
        _running([sys.executable, str(_INSTANT_RUNTIME)]) as runtime,
    ):
        runtime_port = int(_first_line(runtime))
        try:
            asyncio.run(_register(url, token, f"http://127.0.0.1:{runtime_port}"))
        except NotReady as error:
            raise RuntimeError(f"the control plane is not ready: {log_file.read_text()[-2000:]}") from error
        created = httpx.post(
            f"{url}/admin/v1/tenants/{NAMESPACE}/keys",
            json={"name": "b"},
            headers={"Authorization": f"Bearer {admin}"},
            trust_env=False,
        )
        key = created.raise_for_status().json()["key"]
        row = InferRow(adapter=f"{NAMESPACE}/{MODEL}", text=TEXT)
        direct = InferRequest(request_id="bench", rows=[row]).model_dump_json(by_alias=True).encode()
        yield Stage(
            direct=Target(runtime_port, "/internal/v1/infer", token, direct),
            through=Target(port, "/classify", key, f'{{"model": "{MODEL}", "input": "{TEXT}"}}'.encode()),
            folder=folder,
            gateway_process=plane.pid,
        )


@contextmanager
def _running(
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


async def _register(url: str, token: str, runtime_url: str) -> None:
    """Register a runtime and one adapter that is ready on it, by the calls of operator, trainer and runtime.

    The first call waits until the control plane is ready.
    """

    def complete(run: RunView, result: RunResult) -> None:
        with TrainerClient(url, TokenSource(token), run.id) as trainer:
            trainer.complete_run(result)

    patient = RetryPolicy(first_wait=0.1, longest_wait=0.1, patience=_START_SECONDS)
    async with ControlPlaneClient(url, token, retry=patient) as plane:
        registration = RuntimeRegistration(
            url=runtime_url, device="cpu", capacity_bytes=10**9, incarnation="one"
        )
        await plane.register_runtime("instant", registration)
        await plane.ensure_tenant(Tenant(NAMESPACE))
        await plane.declare("Domain", f"{NAMESPACE}/{DOMAIN}", domain_record())
        complete(await plane.create_run(domain_run()), domain_result())
        view = await plane.domain(f"{NAMESPACE}/{DOMAIN}")
        domain = view.current if view is not None else None
        if domain is None:
            raise RuntimeError("the Domain's run made no version")
        await plane.declare("TaskAdapter", f"{NAMESPACE}/{MODEL}", adapter_record(1, NAMESPACE))
        complete(await plane.create_run(adapter_run(1, NAMESPACE, domain)), adapter_result(1, domain))
        ready = [AdapterVersionRef(adapter=f"{NAMESPACE}/{MODEL}", version=1)]
        await plane.heartbeat("instant", Heartbeat(incarnation="one", ready=ready))
