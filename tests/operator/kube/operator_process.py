"""The operator as a process of its own, and its probes."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from hmi_operator.embedded import tether


@dataclass
class Process:
    """A replica and its probes."""

    name: str
    url: str
    running: "subprocess.Popen[bytes]"

    async def answers(self, path: str) -> str | None:
        """Return the text of a probe; None if it does not answer or fails."""
        async with httpx.AsyncClient() as http:
            try:
                answer = await http.get(self.url + path, timeout=5)
            except httpx.TransportError:
                return None
        return answer.text if answer.is_success else None

    async def leads(self) -> bool:
        said = await self.answers("/metrics")
        return said is not None and "hmi_operator_leader 1.0" in said

    async def ready(self) -> bool:
        return await self.answers("/readyz") == "ok"

    async def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        return metric_in(await self.answers("/metrics") or "", name)

    def resident_bytes(self) -> int:
        """Return the memory that the process has at present."""
        return resident_bytes(self.running.pid)

    def peak_bytes(self) -> int:
        """Return the most memory that the process has had."""
        return resident_bytes(self.running.pid, "VmHWM")


def metric_in(said: str, name: str) -> float:
    """Return the sum of one of the process's metrics over its labels."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", said, re.MULTILINE))


def resident_bytes(pid: int, line: str = "VmRSS") -> int:
    """Return the memory that a process has at present; with ``VmHWM``, the most that it has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{line}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


@contextmanager
def process(served: Any, namespace: str, name: str, log: Path, **settings: str) -> Iterator[Process]:
    """Run ``python -m hmi_operator``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = os.environ | {
        "HMI_CONTROL_PLANE_URL": served.url,
        "HMI_INTERNAL_TOKEN": served.token,
        "HMI_NAMESPACE": namespace,
        "HMI_WATCH_NAMESPACES": f'["{namespace}"]',
        "HMI_POD_NAME": name,
        "HMI_LEASE_SECONDS": "3",
        "HMI_PROBE_HOST": "127.0.0.1",
        "HMI_PROBE_PORT": str(port),
        "HMI_TRAINER_IMAGE": "hmi/runtime:test",
        "HMI_LOG_FORMAT": "json",
        **settings,
    }
    with (log / f"{name}.log").open("wb") as output:
        running = subprocess.Popen(
            [sys.executable, tether.__file__, str(os.getpid()), sys.executable, "-m", "hmi_operator"],
            env=environment,
            stdout=output,
            stderr=output,
        )
        try:
            yield Process(name, f"http://127.0.0.1:{port}", running)
        finally:
            running.kill()
            running.wait()
