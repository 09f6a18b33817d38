"""A replica of the operator inside a test, and trainings that end at once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from kube_objects import DOMAINS, KINDS, TASK_ADAPTERS, Kind, Objects
from kube_server import KubeServer
from small_artifacts import publish

from hmi_api.artifacts import ArtifactKind
from hmi_api.internal.client import ControlPlaneClient
from hmi_api.internal.refreshes import RefreshResult
from hmi_api.internal.runs import DomainRunSpec, RunProgress, RunResult, RunView
from hmi_api.internal.trainer_client import TrainerClient
from hmi_api.resources.conditions import Condition, find_condition
from hmi_api.security.bearer import TokenSource
from hmi_operator.controller import Pace
from hmi_operator.kubernetes.client import KubernetesClient, Manifest, connect
from hmi_operator.kubernetes.events import EventRecorder
from hmi_operator.kubernetes.lease import Lease, boot_clock
from hmi_operator.kubernetes.operator import Operator
from hmi_operator.orphans import OrphanGrace
from hmi_operator.planning import JobView
from hmi_operator.ports import ResourceRef

LIMIT_SECONDS = 90.0
PACE = Pace(resync_seconds=5.0)


_BETWEEN_LOOKS_SECONDS = 0.05


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """Wait for a condition, with a limit."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            if found := await condition():
                return found
            await asyncio.sleep(_BETWEEN_LOOKS_SECONDS)


@dataclass
class PromptJobs:
    """Training Jobs for tests: each run succeeds as soon as it is started, unless ``paused`` is set."""

    url: str
    token: str
    paused: bool = False
    started: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)

    async def start(self, run: RunView) -> None:
        self.started.append(run.id)
        await asyncio.to_thread(self._train, run, finish=not self.paused)

    async def finish(self, run: RunView) -> None:
        await asyncio.to_thread(self._train, run, finish=True)

    async def observe(self, run: RunView) -> JobView | None:
        return JobView(alive=run.id in self.started)

    async def stop(self, run_id: str, namespace: str) -> None:
        self.started.remove(run_id)

    async def delete_all(self, uid: str, namespace: str) -> None:
        self.deleted.append(uid)

    def _train(self, run: RunView, *, finish: bool) -> None:
        is_domain = run.spec.kind == "domain"
        refresh = run.spec.refresh if isinstance(run.spec, DomainRunSpec) else None
        kinds = [ArtifactKind.LAYERS, ArtifactKind.TABLE] if is_domain else [ArtifactKind.ADAPTER]
        kinds = [ArtifactKind.TABLE] if refresh else kinds
        with TrainerClient(self.url, TokenSource(self.token), run.id) as trainer:
            trainer.report_progress(RunProgress(stage="training", step=120, total=400))
            if finish:
                made = [publish(trainer, kind, f'"{kind} of {run.id}"'.encode()) for kind in kinds]
                result = RunResult(artifacts=made, base_digest="sha256:b", metrics={"accuracy": 0.9})
                figures: dict[str, Any] = {"split": 3, "entries": 5, "coverage": 0.5} if is_domain else {}
                if refresh:
                    figures |= {
                        "layers_digest": refresh.current.layers.digest,
                        "refresh": RefreshResult(windows_in=3, windows_out=1),
                    }
                trainer.complete_run(result.model_copy(update=figures))


@dataclass
class Cluster:
    """A namespace of the API server, seen by a user."""

    client: KubernetesClient
    namespace: str

    @property
    def api(self) -> Objects:
        """Requests for objects of any kind."""
        return Objects(self.client)

    async def apply(self, body: dict[str, Any]) -> Manifest:
        """Create an object, or change the given fields."""
        kind = KINDS[body["kind"]]
        name = body["metadata"]["name"]
        body = body | {"metadata": body["metadata"] | {"namespace": self.namespace}}
        changed = await self.api.merge_patch(kind, self.namespace, name, body)
        return changed or await self.api.create(kind, self.namespace, body)

    async def apply_all(self, *bodies: dict[str, Any]) -> None:
        """Apply several objects, in order."""
        for body in bodies:
            await self.apply(body)

    async def get(self, kind: Kind, name: str) -> Manifest | None:
        return await self.api.get(kind, self.namespace, name)

    async def reached(self, kind: Kind, name: str, condition: Callable[[Manifest], bool]) -> Manifest:
        """Wait until the object is as wanted."""

        async def find() -> Manifest | None:
            found = await self.get(kind, name)
            return found if found is not None and condition(found) else None

        found: Manifest = await until(find)
        return found

    async def gone(self, kind: Kind, name: str) -> None:
        async def find() -> bool:
            return await self.get(kind, name) is None

        await until(find)

    async def delete(self, kind: Kind, name: str) -> None:
        await self.api.delete(kind, self.namespace, name)


@asynccontextmanager
async def cluster(kube: KubeServer, namespace: str) -> AsyncIterator[Cluster]:
    """A new namespace; ``KUBECONFIG`` must name the server."""
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    async with connect() as client:
        yield Cluster(client, namespace)


@dataclass
class Replica:
    """A running replica."""

    operator: Operator
    jobs: PromptJobs
    lease: Lease
    stop: asyncio.Event
    task: "asyncio.Task[None]"


@asynccontextmanager
async def replica(
    served: Any,
    namespace: str,
    *,
    also: tuple[str, ...] = (),
    name: str = "replica-1",
    seconds: float = 60.0,
    grace: OrphanGrace | None = None,
    clock: Callable[[], float] = boot_clock,
) -> AsyncIterator[Replica]:
    """Run a replica that watches one namespace, and others besides."""
    async with (
        ControlPlaneClient(served.url, served.token) as control_plane,
        connect() as client,
    ):
        jobs = PromptJobs(served.url, served.token)
        lease = Lease(client, namespace, name, seconds=seconds, clock=clock)
        operator = Operator(
            client=client,
            control_plane=control_plane,
            jobs=jobs,
            lease=lease,
            events=EventRecorder(client, name, namespace=namespace),
            orphan_grace=grace or OrphanGrace(),
            namespaces=[namespace, *also],
            pace=PACE,
        )
        stop = asyncio.Event()
        task = asyncio.create_task(operator.run(stop))
        try:
            yield Replica(operator, jobs, lease, stop, task)
        finally:
            stop.set()
            await task


def conditions(manifest: Manifest) -> list[Condition]:
    return [Condition.model_validate(one) for one in manifest.get("status", {}).get("conditions", [])]


def condition(manifest: Manifest, type_: str) -> Condition | None:
    return find_condition(conditions(manifest), type_)


def is_ready(manifest: Manifest) -> bool:
    found = condition(manifest, "Ready")
    return found is not None and found.status == "True" and manifest["status"]["phase"] == "Ready"


def has_phase(phase: str) -> Callable[[Manifest], bool]:
    return lambda manifest: manifest.get("status", {}).get("phase") == phase


__all__ = [
    "DOMAINS",
    "TASK_ADAPTERS",
    "Cluster",
    "PromptJobs",
    "Replica",
    "ResourceRef",
    "cluster",
    "condition",
    "conditions",
    "has_phase",
    "is_ready",
    "replica",
    "until",
]
