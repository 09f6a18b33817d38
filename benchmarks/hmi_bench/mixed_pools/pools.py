"""The processes of a pool: a control plane with its gateway, and two runtimes."""

import asyncio
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from hmi_api.artifacts import ArtifactRef
from hmi_api.internal.catalog import AdapterRecord, AdapterView, DomainRecord, DomainVersionView
from hmi_api.internal.client import ControlPlaneClient
from hmi_api.internal.inference import InferReply, InferRequest, InferRow, RowResult
from hmi_api.internal.precision import PrecisionSetting
from hmi_api.internal.runs import AdapterRunSpec, DomainRunSpec, RunCreate, RunResult
from hmi_api.names import Tenant
from hmi_api.resources.common import DataSource, ObjectRef
from hmi_api.resources.domain import BaseModelRef, DomainSpec
from hmi_api.resources.task_adapter import Task, TaskAdapterSpec, TaskData
from hmi_bench.gateway.processes import ControlPlane, running, running_control_plane
from hmi_bench.mixed_pools.population import Population, TrainedTask
from hmi_cli.system.server import free_port
from hmi_runtime.server.settings import RuntimeSettings

SPREAD, SINGLE = "spread", "single"
"""The tenant whose adapters are on both runtimes, and the one whose adapters are on one."""
_NAMESPACE, _DOMAIN = "platform", "desk"
_DIGEST = "sha256:" + "1" * 64
_WAIT_SECONDS = 180.0
_PAUSE_SECONDS = 0.1
_REQUESTS = 'hmi_requests_total{code="200",route="infer"}'


@dataclass(frozen=True)
class PoolRuntime:
    """A runtime with one core."""

    id: str
    url: str
    precision: PrecisionSetting
    token: str

    def answered(self) -> float:
        """Return the number of requests answered so far."""
        text = httpx.get(f"{self.url}/metrics", trust_env=False).raise_for_status().text
        lines = (line.split() for line in text.splitlines() if line.startswith(_REQUESTS))
        return sum(float(line[1]) for line in lines)

    def infer(self, rows: Sequence[InferRow]) -> list[RowResult]:
        """Return the answers. Raises ``RuntimeError`` if a row has none."""
        request = InferRequest(request_id="comparison", rows=list(rows))
        response = httpx.post(
            f"{self.url}/internal/v1/infer",
            content=request.model_dump_json(by_alias=True, exclude_none=True),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
            timeout=_WAIT_SECONDS,
            trust_env=False,
        )
        found = InferReply.model_validate_json(response.raise_for_status().content).results
        for result in found:
            if result.error is not None:
                raise RuntimeError(f"{result.error.reason}: {result.error.message}")
        return found


@dataclass(frozen=True)
class Pool:
    """Two runtimes that serve the same; ``single_on`` is the one that has the tenant ``SINGLE``."""

    plane: ControlPlane
    keys: dict[str, str]
    """API keys by tenant."""
    runtimes: Sequence[PoolRuntime]
    single_on: PoolRuntime

    @property
    def name(self) -> str:
        """The precisions of both."""
        return " + ".join(runtime.precision for runtime in self.runtimes)


@contextmanager
def running_pool(
    folder: Path, population: Population, precisions: Sequence[PrecisionSetting]
) -> Iterator[Pool]:
    """Run a pool whose logs and caches are in ``folder``, and whose artifacts are the population's."""
    folder.mkdir()
    artifacts = population.artifacts
    with ExitStack() as stack:
        plane = stack.enter_context(running_control_plane(folder, artifacts))
        asyncio.run(_wait_for_plane(plane))
        runtimes = [
            stack.enter_context(_running_runtime(folder, artifacts, plane, f"runtime-{number}", precision))
            for number, precision in enumerate(precisions)
        ]
        for runtime in runtimes:
            _wait_until_ready(runtime, folder)
        views = asyncio.run(_register(plane, population, len(runtimes)))
        (single_on,) = {name for view in views for name in view.loaded_on}
        keys = {tenant: plane.create_key(tenant) for tenant in (SPREAD, SINGLE)}
        yield Pool(plane, keys, runtimes, next(one for one in runtimes if one.id == single_on))


@contextmanager
def _running_runtime(
    folder: Path, artifacts: str, plane: ControlPlane, name: str, precision: PrecisionSetting
) -> Iterator[PoolRuntime]:
    url = f"http://127.0.0.1:{free_port()}"
    variables = RuntimeSettings.variables(
        control_plane_url=plane.url,
        internal_token=plane.token,
        runtime_id=name,
        runtime_url=url,
        artifacts=artifacts,
        cache_dir=folder / name,
        precision=precision,
        threads=1,
        device_slots=16,
        request_timeout_seconds=_WAIT_SECONDS,
        move_seconds=0.0,
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    with (
        (folder / f"{name}.log").open("w") as log,
        running([sys.executable, "-m", "hmi_runtime.server"], environment, log),
    ):
        yield PoolRuntime(name, url, precision, plane.token)


def _wait_until_ready(runtime: PoolRuntime, folder: Path) -> None:
    until = time.monotonic() + _WAIT_SECONDS
    while not _is_ready(runtime):
        if time.monotonic() > until:
            raise RuntimeError(f"{runtime.id} is not ready: {(folder / f'{runtime.id}.log').read_text()}")
        time.sleep(_PAUSE_SECONDS)


def _is_ready(runtime: PoolRuntime) -> bool:
    try:
        return httpx.get(f"{runtime.url}/readyz", trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


async def _wait_for_plane(plane: ControlPlane) -> None:
    async with plane.client() as client:
        await client.ensure_tenant(Tenant(_NAMESPACE))


async def _register(plane: ControlPlane, population: Population, runtimes: int) -> list[AdapterView]:
    """Publish the Domain and every adapter for both tenants; return the views of the tenant ``SINGLE``."""
    async with plane.client() as client:
        domain = await _publish_domain(client, plane, population)
        for tenant, replicas in ((SPREAD, runtimes), (SINGLE, 1)):
            await client.ensure_tenant(Tenant(tenant))
            for number, task in enumerate(population.tasks):
                artifact = population.domain.publish(f"{tenant}/{task.name}", task.weights).artifact
                await _publish_adapter(client, plane, tenant, task, number, replicas, domain, artifact)
        for task in population.tasks:
            await _wait_until_loaded(client, f"{SPREAD}/{task.name}", runtimes)
        return [await _wait_until_loaded(client, f"{SINGLE}/{task.name}", 1) for task in population.tasks]


async def _publish_domain(
    client: ControlPlaneClient, plane: ControlPlane, population: Population
) -> DomainVersionView:
    version = population.domain.serving.version
    record = DomainRecord(
        uid="domain", tenant=_NAMESPACE, generation=1, spec_digest=_DIGEST, base_uri=version.base.uri
    )
    key = f"{_NAMESPACE}/{_DOMAIN}"
    await client.declare("Domain", key, record)
    spec = DomainSpec(base_model=BaseModelRef(uri=version.base.uri), corpus=[DataSource(uri="corpus.txt")])
    run = await client.create_run(
        RunCreate(
            uid="domain",
            tenant=_NAMESPACE,
            spec_digest=_DIGEST,
            spec=DomainRunSpec(namespace=_NAMESPACE, name=_DOMAIN, spec=spec),
        )
    )
    result = RunResult(
        artifacts=[version.layers, *version.tables],
        base_digest=version.base_digest,
        split=version.split,
        entries=version.entries,
    )
    plane.complete_run(run.id, result)
    view = await client.domain(key)
    if view is None or view.current is None:
        raise RuntimeError("the Domain's run made no version")
    return view.current


async def _publish_adapter(
    client: ControlPlaneClient,
    plane: ControlPlane,
    tenant: str,
    task: TrainedTask,
    number: int,
    replicas: int,
    domain: DomainVersionView,
    artifact: ArtifactRef,
) -> None:
    uid = f"{tenant}-{number}"
    record = AdapterRecord(
        uid=uid,
        tenant=tenant,
        generation=1,
        spec_digest=_DIGEST,
        domain=f"{_NAMESPACE}/{_DOMAIN}",
        task_type=task.weights.task,
        replicas=replicas,
    )
    await client.declare("TaskAdapter", f"{tenant}/{task.name}", record)
    labels = list(task.weights.labels)
    spec = TaskAdapterSpec(
        domain_ref=ObjectRef(name=_DOMAIN, namespace=_NAMESPACE),
        task=Task(type=task.weights.task, labels=labels),
        data=TaskData(train=DataSource(uri="train.jsonl")),
    )
    run = await client.create_run(
        RunCreate(
            uid=uid,
            tenant=tenant,
            spec_digest=_DIGEST,
            spec=AdapterRunSpec(namespace=tenant, name=task.name, spec=spec, domain=domain),
        )
    )
    result = RunResult(
        artifacts=[artifact],
        base_digest=task.weights.base_digest,
        layers_digest=task.weights.layers_digest,
        labels=labels,
        metrics={"accuracy": task.validation},
    )
    plane.complete_run(run.id, result)


async def _wait_until_loaded(client: ControlPlaneClient, key: str, runtimes: int) -> AdapterView:
    until = time.monotonic() + _WAIT_SECONDS
    while True:
        view = await client.adapter(key)
        if view is not None and len(view.loaded_on) == runtimes:
            return view
        if time.monotonic() > until:
            raise RuntimeError(f"{key} is not loaded: {view}")
        await asyncio.sleep(_PAUSE_SECONDS)
