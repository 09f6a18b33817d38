"""Many TaskAdapters at once: all work for each is bounded, and so is the operator's memory.

Between a real API server and the real control plane, on PostgreSQL, with a runtime that serves whatever is
placed on it and trainings that succeed at once. Their number is a variable; and on a cluster's own nodes,
fake ones with the taint ``kwok.x-k8s.io/node``, where Jobs get pods and a controller ends them::

    HMI_SCALE=5000 pytest -s tests/operator/kube/test_scale.py
    HMI_SCALE=5000 HMI_SCALE_CLUSTER=/path/of/kubeconfig pytest -s tests/operator/kube/test_scale.py
"""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from kube_assets import kube_assets
from kube_objects import JOBS
from kube_server import KubeServer, existing_server, install_types
from operator_harness import DOMAINS, TASK_ADAPTERS, Cluster, cluster, is_ready
from operator_process import Process, process
from scale_parts import (
    PlaneProcess,
    all_are,
    is_complete,
    plane_process,
    processor_seconds,
    simulated_services,
)

from hmi_operator.kubernetes.client import ApiServerConflict

ADAPTERS = int(os.environ.get("HMI_SCALE", "25"))
CLUSTER = os.environ.get("HMI_SCALE_CLUSTER")
LIMIT_SECONDS = 300 + ADAPTERS
pytestmark = [pytest.mark.anyio, pytest.mark.postgres, pytest.mark.timeout(2 * LIMIT_SECONDS + 300)]
CREATED_AT_ONCE = 8
QUIET = {"HMI_LOG_LEVEL": "WARNING", "HMI_LEASE_SECONDS": "30"}
ON_FAKE_NODES = {
    "HMI_TRAINER_TOLERATIONS": '[{"key": "kwok.x-k8s.io/node", "operator": "Exists"}]',
    "HMI_TRAINER_NODE_SELECTOR": '{"type": "kwok"}',
    "HMI_TRAINER_CHECKPOINT_SIZE": "",
    "HMI_TRAINER_SUCCEEDED_TTL_SECONDS": "86400",
}
"""No volumes, because no fake node mounts any. Jobs are kept, so that their completion can be waited for."""
SETTINGS = QUIET | ON_FAKE_NODES if CLUSTER else QUIET
KUBE_REQUESTS = 12
"""Requests to the API server for one TaskAdapter, from its creation until it serves."""
PLANE_REQUESTS = 14
"""Requests to the control plane, those of its training and runtime included."""
BYTES = 40_000
"""Of the operator's memory, for one TaskAdapter, beside what it needs in any case."""
RESTART_BYTES = 60_000
"""The same for a moment after a restart, when all lists are read."""
REST_BYTES = 110 << 20
"""Of an operator that has nothing to do."""
SLACK, SLACK_BYTES = 60, 64 << 20
"""What is not done for each TaskAdapter."""


@pytest.fixture
def kubeconfig(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> KubeServer:
    """The requested cluster, else the tests' own API server, named by KUBECONFIG."""
    if CLUSTER is None:
        own: KubeServer = request.getfixturevalue("kube")
        monkeypatch.setenv("KUBECONFIG", str(own.kubeconfig))
        return own
    server = existing_server(Path(CLUSTER), kube_assets(), tmp_path)
    install_types(server)
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
    return server


async def create_adapters(here: Cluster, body: dict[str, Any]) -> None:
    numbers = iter(range(ADAPTERS))

    async def create() -> None:
        for number in numbers:
            metadata = {"name": f"task-{number}", "namespace": here.namespace}
            try:
                await here.api.create(TASK_ADAPTERS, here.namespace, body | {"metadata": metadata})
            except ApiServerConflict:  # the answer to the first try was lost
                continue

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CREATED_AT_ONCE):
            tasks.create_task(create())


async def figures(operator: Process, plane: PlaneProcess) -> dict[str, float]:
    """Return what has been done so far: requests, reconciliations, and processor seconds by process."""
    done = {
        "requests to the API server": await operator.metric("hmi_kube_requests_total"),
        "requests to the control plane": await plane.requests(),
        "reconciliations": await operator.metric("hmi_reconcile_seconds_count"),
    }
    return done | {f"s of {name}": seconds for name, seconds in processor_seconds().items()}


def runs_made(database_url: str) -> int:
    with psycopg.connect(database_url) as connection:
        found = connection.execute("SELECT count(*) FROM training_runs").fetchone()
    assert found is not None
    return int(found[0])


async def test_many_adapters_become_ready_with_bounded_work_for_each(
    kubeconfig: KubeServer,
    namespace: str,
    postgres_url: str,
    domain_body: dict[str, Any],
    adapter_body: dict[str, Any],
    tmp_path: Path,
) -> None:
    for body in (domain_body, adapter_body):
        body["metadata"].pop("namespace")
    domain_body["spec"]["corpus"] = [{"uri": "s3://b/c.jsonl"}]
    adapter_body["spec"]["data"] = {"train": {"uri": "s3://b/t.jsonl"}}
    with plane_process(postgres_url, tmp_path) as plane:
        async with (
            cluster(kubeconfig, namespace) as here,
            simulated_services(plane, namespace, on_nodes=CLUSTER is not None),
        ):
            with process(plane, namespace, "operator", tmp_path, **SETTINGS) as operator:
                await here.apply(domain_body)
                await here.reached(DOMAINS, "hotel", is_ready)
                await _become_ready(here, operator, plane, adapter_body)
                assert runs_made(postgres_url) == ADAPTERS + 1
            with process(plane, namespace, "operator", tmp_path, **SETTINGS) as operator:
                await _take_over(operator)
                assert runs_made(postgres_url) == ADAPTERS + 1


async def _become_ready(
    here: Cluster, operator: Process, plane: PlaneProcess, adapter_body: dict[str, Any]
) -> None:
    before = await figures(operator, plane)
    at_rest, plane_at_rest = operator.resident_bytes(), plane.resident_bytes()
    began = time.monotonic()
    await create_adapters(here, adapter_body)
    created = time.monotonic()
    async with asyncio.timeout(LIMIT_SECONDS):
        await all_are(here.client, TASK_ADAPTERS, here.namespace, ADAPTERS, is_ready)
        ended = time.monotonic()
        await all_are(here.client, JOBS, here.namespace, ADAPTERS + 1, is_complete)
    all_ended = time.monotonic()
    after = await figures(operator, plane)
    each = {name: (value - before.get(name, 0.0)) / ADAPTERS for name, value in after.items()}
    print(
        f"\n{ADAPTERS} TaskAdapters: created in {created - began:.0f} s, Ready after {ended - began:.0f} s, "
        f"their Jobs complete after {all_ended - began:.0f} s"
    )
    for name, value in each.items():
        print(
            f"  each {1000 * value:.0f} m{name}" if name.startswith("s of") else f"  each {value:.1f} {name}"
        )
    for name, was, now in (
        ("operator", at_rest, operator.resident_bytes()),
        ("control plane", plane_at_rest, plane.resident_bytes()),
    ):
        print(f"  {name}: {was / 2**20:.0f} MiB before, {now / 2**20:.0f} MiB after")
    share = SLACK / ADAPTERS
    assert each["requests to the API server"] < KUBE_REQUESTS + share
    assert each["requests to the control plane"] < PLANE_REQUESTS + share
    assert operator.resident_bytes() - at_rest < BYTES * ADAPTERS + SLACK_BYTES


async def _take_over(operator: Process) -> None:
    """Let a started operator reconcile everything; there is nothing to do."""
    began = time.monotonic()
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            if await operator.metric("hmi_reconcile_seconds_count") > ADAPTERS:
                break
            await asyncio.sleep(0.5)  # between two checks of another process
    requests = await operator.metric("hmi_kube_requests_total")
    print(
        f"restart: all reconciled after {time.monotonic() - began:.0f} s, {requests:.0f} requests to the API "
        f"server, at most {operator.peak_bytes() / 2**20:.0f} MiB"
    )
    assert requests < SLACK + ADAPTERS / 50, "pages of lists, and the lease meanwhile; nothing for each"
    assert operator.peak_bytes() < RESTART_BYTES * ADAPTERS + REST_BYTES + SLACK_BYTES
    assert await operator.metric("hmi_reconcile_failures_total") == 0
