"""The environment of the operator while it is measured: a control plane, a runtime, runs that succeed.

Each does as little as possible, so that the operator is measured: nothing here polls.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from kube_objects import JOBS, PODS, Kind, Objects
from operator_process import metric_in, resident_bytes

from hmi_api.errors import HmiError
from hmi_api.names import digest_bytes
from hmi_operator.embedded import tether
from hmi_operator.kubernetes.client import KubernetesClient, Manifest, connect
from hmi_operator.kubernetes.jobs.naming import KIND_LABEL, RUN_LABEL

TOKEN = "the-internal-token-of-this-test"
_START_SECONDS = 120.0
_AT_ONCE = 8
_BETWEEN_HEARTBEATS_SECONDS = 1.0


# --- the control plane ---------------------------------------------------------------------------------


@dataclass
class PlaneProcess:
    """The control plane as a process of its own."""

    url: str
    running: "subprocess.Popen[bytes]"
    token: str = TOKEN

    async def requests(self) -> float:
        """Return how many requests it has answered."""
        async with aiohttp.ClientSession() as http, http.get(f"{self.url}/metrics") as answer:
            return metric_in(await answer.text(), "hmi_requests_total")

    def resident_bytes(self) -> int:
        """Return the memory that the process has at present."""
        return resident_bytes(self.running.pid)


@contextmanager
def plane_process(database_url: str, folder: Path) -> Iterator[PlaneProcess]:
    """Run ``python -m hmi_control_plane control-plane``; a runtime is believed for a day."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = os.environ | {
        "HMI_DATABASE_URL": database_url,
        "HMI_ARTIFACTS": str(folder / "artifacts"),
        "HMI_USAGE_DIR": str(folder / "usage"),
        "HMI_INTERNAL_TOKEN": TOKEN,
        "HMI_ADMIN_KEY": "the-admin-key-of-this-test",
        "HMI_RUNTIME_LOST_AFTER_SECONDS": "86400",
        "HMI_PORT": str(port),
    }
    command = [sys.executable, tether.__file__, str(os.getpid())]
    command += [sys.executable, "-m", "hmi_control_plane", "control-plane"]
    log = folder / "control-plane.log"
    with log.open("wb") as output:
        running = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            _await_listening(port, running, log)
            yield PlaneProcess(f"http://127.0.0.1:{port}", running)
        finally:
            running.kill()
            running.wait()


def _await_listening(port: int, running: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except OSError as error:
            if running.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the control plane did not start: {log.read_text()[-2000:]}") from error
            time.sleep(0.05)  # between two checks of the condition


# --- a runtime and the trainings -----------------------------------------------------------------------


@dataclass
class FakeRuntime:
    """A fake runtime: adapters that are placed on it are ready at once, as its heartbeats report."""

    http: aiohttp.ClientSession
    incarnation: str = "i1"

    async def register(self) -> None:
        hello = {
            "url": "http://r1",
            "device": "cpu",
            "capacityBytes": 1 << 40,
            "incarnation": self.incarnation,
        }
        await self._ask("PUT", "", hello)

    async def run(self) -> None:
        """Follow the desired state until cancelled."""
        revision = 0
        while True:
            desired = await self._ask("GET", f"/desired?since={revision}&wait=30")
            revision = desired["revision"]
            ready = [{"adapter": one["key"], "version": one["version"]} for one in desired["adapters"]]
            if ready:
                await asyncio.sleep(_BETWEEN_HEARTBEATS_SECONDS)
                said = {"incarnation": self.incarnation, "freeBytes": 1 << 40, "ready": ready}
                await self._ask("POST", "/heartbeat", said)

    async def _ask(self, method: str, path: str, body: Any = None) -> Any:
        async with self.http.request(method, f"/internal/v1/runtimes/r1{path}", json=body) as answer:
            answer.raise_for_status()
            return await answer.json() if answer.status != 204 else None


@dataclass
class Trainings:
    """Stands in for training programs, each of which succeeds at once.

    Where ``on_nodes``, the cluster has a Job controller, a scheduler and nodes, fake ones perhaps: a run
    succeeds when its pod has been given to one. Elsewhere this ends the Jobs too.
    """

    client: KubernetesClient
    http: aiohttp.ClientSession
    namespace: str
    on_nodes: bool
    seen: set[str] = field(default_factory=set)
    line: "asyncio.Queue[Manifest]" = field(default_factory=asyncio.Queue)

    async def run(self) -> None:
        """Let runs succeed as their Jobs or pods come, a few at once, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_AT_ONCE):
                tasks.create_task(self._work())
            kind = PODS if self.on_nodes else JOBS
            async for body in watched(self.client, kind, self.namespace, labels=RUN_LABEL):
                uid = body["metadata"]["uid"]
                begun = bool(body["spec"].get("nodeName")) or not self.on_nodes
                if begun and uid not in self.seen:
                    self.seen.add(uid)
                    self.line.put_nowait(body)

    async def _work(self) -> None:
        while True:
            body = await self.line.get()
            try:
                await self._succeed(body)
            except (HmiError, aiohttp.ClientError, TimeoutError):
                self.line.put_nowait(body)  # the machine is busy: once more, after the others

    async def _succeed(self, body: Manifest) -> None:
        labels = body["metadata"]["labels"]
        result = _result(labels[RUN_LABEL], domain=labels[KIND_LABEL] == "Domain")
        path = f"/internal/v1/runs/{labels[RUN_LABEL]}/complete"
        async with self.http.post(path, json=result) as answer:
            answer.raise_for_status()
        if not self.on_nodes:
            await self._end_job(body["metadata"]["name"])

    async def _end_job(self, name: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        conditions = [
            {"type": type_, "status": "True", "reason": "CompletionsReached", "lastTransitionTime": now}
            for type_ in ("SuccessCriteriaMet", "Complete")
        ]
        status = {"succeeded": 1, "startTime": now, "completionTime": now, "conditions": conditions}
        await Objects(self.client).merge_patch(JOBS, self.namespace, name, {"status": status}, "status")


def is_complete(job: Manifest) -> bool:
    """Say whether all that a Job is for has been done."""
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(one["type"] == "Complete" and one["status"] == "True" for one in conditions)


def _result(run_id: str, *, domain: bool) -> dict[str, Any]:
    artifact = {
        "kind": "Layers" if domain else "Adapter",
        "uri": f"a/{run_id}",
        "digest": digest_bytes(run_id.encode()),
        "bytes": 10,
    }
    of_domain = {"split": 3, "entries": 5, "coverage": 0.5} if domain else {"labels": ["a", "b"]}
    return {
        "artifacts": [artifact],
        "baseDigest": "sha256:b",
        "metrics": {"accuracy": 0.9},
        "gatePassed": True,
    } | of_domain


@asynccontextmanager
async def simulated_services(plane: PlaneProcess, namespace: str, *, on_nodes: bool) -> AsyncIterator[None]:
    """Run the runtime and the trainings; ends what waits for them when one of them fails."""
    headers = {"Authorization": f"Bearer {plane.token}"}
    async with (
        aiohttp.ClientSession(plane.url, headers=headers) as http,
        connect() as client,
        asyncio.TaskGroup() as tasks,
    ):
        runtime = FakeRuntime(http)
        await runtime.register()
        running = [
            tasks.create_task(runtime.run()),
            tasks.create_task(Trainings(client, http, namespace, on_nodes).run()),
        ]
        yield
        for task in running:
            task.cancel()


# --- seeing --------------------------------------------------------------------------------------------


async def watched(
    client: KubernetesClient, kind: Kind, namespace: str, labels: str = ""
) -> AsyncIterator[Manifest]:
    """Give every object that there is, and each again whenever it changes; for ever, deletions left out.

    Listed in pages first and watched from there: the API server breaks off a watch that begins with many.
    """
    while True:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, HmiError, _TooOld):  # it starts again
            async for item in _listed_then_watched(Objects(client), kind, namespace, labels):
                yield item


class _TooOld(Exception):
    """The API server has no events any more from the requested version on."""


async def _listed_then_watched(
    objects: Objects, kind: Kind, namespace: str, labels: str
) -> AsyncIterator[Manifest]:
    chosen = {"labelSelector": labels} if labels else {}
    version = ""
    async for page in objects.pages(kind, namespace, **chosen):
        for item in page["items"]:
            yield item
        version = page["metadata"]["resourceVersion"]
    while True:
        async for event in objects.watch(kind, namespace, version, timeoutSeconds="300", **chosen):
            if event["type"] == "ERROR":
                raise _TooOld
            version = event["object"]["metadata"]["resourceVersion"]
            if event["type"] in ("ADDED", "MODIFIED"):
                yield event["object"]


async def all_are(
    client: KubernetesClient, kind: Kind, namespace: str, count: int, condition: Callable[[Manifest], bool]
) -> None:
    """Wait until so many objects satisfy a condition."""
    wanted: set[str] = set()
    async for manifest in watched(client, kind, namespace):
        name = manifest["metadata"]["name"]
        if condition(manifest):
            wanted.add(name)
        else:
            wanted.discard(name)
        if len(wanted) == count:
            return


def processor_seconds() -> dict[str, float]:
    """Return the processor time of this process and of each that it started, with all that those started."""
    times, parents, names = {}, {}, {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_text()
        except OSError:  # it ended meanwhile
            continue
        pid = int(folder.name)
        parents[pid], names[pid] = int(fields[1]), command
        times[pid] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    seconds_by_process: dict[str, float] = defaultdict(float)
    own = os.times()
    seconds_by_process["harness"] = own.user + own.system
    for pid, seconds in times.items():
        child = _child_above(pid, parents)
        if child is not None:
            seconds_by_process[_named(names[child])] += seconds
    return dict(seconds_by_process)


def _child_above(pid: int, parents: dict[int, int]) -> int | None:
    """Return the child of this process that a process is, or descends from; None when it does not."""
    while pid in parents and parents[pid] != os.getpid():
        pid = parents[pid]
    return pid if pid in parents else None


def _named(command: str) -> str:
    for name in ("kube-apiserver", "etcd", "postgres", "hmi_operator", "hmi_control_plane"):
        if name in command:
            return name
    return "others"
