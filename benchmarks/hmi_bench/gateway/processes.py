"""The processes of the gateway benchmark, and one tenant's adapter that is served by the instant runtime."""

import hashlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from hmi_api.internal.inference import InferRequest, InferRow
from hmi_bench.gateway.client import Target

TENANT = "bench"
MODEL = "spam"
TEXT = "The pump in bay four lost pressure again after the seal was replaced."

_START_SECONDS = 60.0
_INSTANT_RUNTIME = Path(__file__).with_name("instant_runtime.py")


@dataclass(frozen=True)
class Stage:
    """The same question asked of the runtime straight and through the gateway."""

    direct: Target
    through: Target
    folder: Path
    gateway_process: int

    def gateway_cpu_seconds(self) -> float:
        """Return the processor time that the gateway's process has taken so far, all its threads together."""
        fields = Path(f"/proc/{self.gateway_process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def served_stage(folder: Path) -> Iterator[Stage]:
    """Start both processes with their files in ``folder``; end them on the way out."""
    token, admin = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    port = _free_port()
    environment = {
        **os.environ,
        "HMI_DATABASE_URL": f"sqlite:///{folder / 'catalog.db'}",
        "HMI_ARTIFACTS": str(folder / "artifacts"),
        "HMI_USAGE_DIR": str(folder / "usage"),
        "HMI_INTERNAL_TOKEN": token,
        "HMI_ADMIN_KEY": admin,
        "HMI_PORT": str(port),
        "HMI_RUNTIME_LOST_AFTER_SECONDS": "86400",
    }
    log_file = folder / "control-plane.log"
    with (
        log_file.open("w") as log,
        _running([sys.executable, "-m", "hmi_control_plane"], environment, log) as plane,
        _running([sys.executable, str(_INSTANT_RUNTIME)]) as runtime,
    ):
        runtime_port = int(_first_line(runtime))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as http:
            _wait_until_ready(http, plane, log_file)
            key = _declare(http, token, admin, f"http://127.0.0.1:{runtime_port}")
        row = InferRow(adapter=f"{TENANT}/{MODEL}", text=TEXT)
        straight = InferRequest(request_id="bench", rows=[row]).model_dump_json(by_alias=True).encode()
        yield Stage(
            direct=Target(runtime_port, "/internal/v1/infer", token, straight),
            through=Target(port, "/classify", key, f'{{"model": "{MODEL}", "input": "{TEXT}"}}'.encode()),
            folder=folder,
            gateway_process=plane.pid,
        )


@contextmanager
def _running(
    command: list[str], environment: Mapping[str, str] | None = None, log: IO[str] | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """Run a process until the block ends; its output goes to ``log``, or can be read where there is none."""
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


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_until_ready(http: httpx.Client, plane: "subprocess.Popen[str]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if plane.poll() is not None:
            raise RuntimeError(f"the control plane ended: {log.read_text()[-2000:]}")
        try:
            if http.get("/readyz").is_success:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.1)
    raise TimeoutError("the control plane did not become ready")


def _declare(http: httpx.Client, token: str, admin: str, runtime_url: str) -> str:
    """Bring one adapter to where the gateway routes to it, as HMI's own parts do; return its tenant's key."""

    def internal(method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {token}"}
        answer = http.request(method, f"/internal/v1{path}", json=body, headers=headers).raise_for_status()
        return answer.json() if answer.content else None

    registration = {"url": runtime_url, "device": "cpu", "capacityBytes": 10**9, "incarnation": "one"}
    internal("PUT", "/runtimes/instant", registration)
    internal("PUT", f"/tenants/{TENANT}")
    record = {"uid": "domain", "tenant": TENANT, "generation": 1, "specDigest": _digest("domain")}
    internal("PUT", f"/domains/{TENANT}/trade", {**record, "baseUri": "wheel://base"})
    spec = {"baseModel": {"uri": "wheel://base"}, "corpus": [{"uri": "corpus.jsonl"}], "split": 3}
    wanted = {"uid": "domain", "tenant": TENANT, "specDigest": _digest("domain"), "attempt": 0}
    named = {"kind": "domain", "namespace": TENANT, "name": "trade", "spec": spec}
    run = internal("POST", "/runs", {**wanted, "spec": named})
    made = [_artifact("Layers", 50), _artifact("Table", 1000)]
    result = {"artifacts": made, "baseDigest": _digest("base"), "split": 3, "entries": 10, "coverage": 0.5}
    internal("POST", f"/runs/{run['id']}/complete", result)
    domain = internal("GET", f"/domains/{TENANT}/trade")["current"]

    declared = {
        **record,
        "uid": "adapter",
        "specDigest": _digest("adapter"),
        "domain": f"{TENANT}/trade",
        "taskType": "SequenceClassification",
    }
    internal("PUT", f"/adapters/{TENANT}/{MODEL}", declared)
    task = {
        "domainRef": {"name": "trade"},
        "task": {"type": "SequenceClassification", "labels": ["no", "yes"]},
        "data": {"train": {"uri": "rows.jsonl"}},
    }
    wanted = {"uid": "adapter", "tenant": TENANT, "specDigest": _digest("adapter"), "attempt": 0}
    named = {"kind": "adapter", "namespace": TENANT, "name": MODEL, "spec": task, "domain": domain}
    run = internal("POST", "/runs", {**wanted, "spec": named})
    result = {
        "artifacts": [_artifact("Adapter", 700)],
        "baseDigest": _digest("base"),
        "layersDigest": domain["layers"]["digest"],
        "labels": ["no", "yes"],
        "metrics": {"accuracy": 0.9},
        "trainingSeconds": 1.0,
    }
    internal("POST", f"/runs/{run['id']}/complete", result)
    ready = [{"adapter": f"{TENANT}/{MODEL}", "version": 1}]
    internal("POST", "/runtimes/instant/heartbeat", {"incarnation": "one", "ready": ready})

    made_key = http.post(
        f"/admin/v1/tenants/{TENANT}/keys", json={"name": "b"}, headers={"Authorization": f"Bearer {admin}"}
    )
    return str(made_key.raise_for_status().json()["key"])


def _artifact(kind: str, size: int) -> dict[str, Any]:
    return {"kind": kind, "uri": f"{kind.lower()}/bench", "digest": _digest(kind), "bytes": size}


def _digest(name: str) -> str:
    return "sha256:" + hashlib.sha256(name.encode()).hexdigest()
