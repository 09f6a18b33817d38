"""Many TaskAdapters at once: all work for each is bounded, and so is the operator's memory.

Between a real API server and the real control plane, on PostgreSQL, with a runtime that serves whatever is
placed on it and trainings that succeed at once. With as many as are asked for::

    HMI_SCALE=5000 pytest -s tests/operator/kube/test_scale.py
"""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from kube_server import KubeServer
from operator_harness import DOMAINS, TASK_ADAPTERS, Cluster, cluster, is_ready
from operator_process import Process, process
from scale_parts import PlaneProcess, all_are, plane_process, processor_seconds, surroundings

from hmi_operator.kube.errors import Conflict

pytestmark = [pytest.mark.anyio, pytest.mark.postgres, pytest.mark.timeout(3600)]

ADAPTERS = int(os.environ.get("HMI_SCALE", "25"))
LIMIT_SECONDS = 300 + ADAPTERS
CREATED_AT_ONCE = 8
QUIET = {"HMI_LOG_LEVEL": "WARNING", "HMI_LEASE_SECONDS": "30"}
KUBE_REQUESTS = 12
"""Requests to the API server for one TaskAdapter, from its creation until it serves."""
PLANE_REQUESTS = 14
"""Requests to the control plane, those of its training and runtime included."""
BYTES = 100_000
"""Of the operator's memory, for one TaskAdapter, beside what it needs in any case."""
SLACK, SLACK_BYTES = 60, 64 << 20
"""What is not done for each TaskAdapter."""


async def create_adapters(here: Cluster, body: dict[str, Any]) -> None:
    numbers = iter(range(ADAPTERS))

    async def create() -> None:
        for number in numbers:
            metadata = {"name": f"task-{number}", "namespace": here.namespace}
            try:
                await here.api.create(TASK_ADAPTERS, here.namespace, body | {"metadata": metadata})
            except Conflict:  # the answer to the first try was lost
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
        async with cluster(kubeconfig, namespace) as here, surroundings(plane, namespace):
            with process(plane, namespace, "operator", tmp_path, **QUIET) as operator:
                await here.apply(domain_body)
                await here.reached(DOMAINS, "hotel", is_ready)
                await _become_ready(here, operator, plane, adapter_body)
                assert runs_made(postgres_url) == ADAPTERS + 1
            with process(plane, namespace, "operator", tmp_path, **QUIET) as operator:
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
        await all_are(TASK_ADAPTERS, here.namespace, ADAPTERS, is_ready)
    ended = time.monotonic()
    after = await figures(operator, plane)
    each = {name: (value - before.get(name, 0.0)) / ADAPTERS for name, value in after.items()}
    print(f"\n{ADAPTERS} TaskAdapters: created in {created - began:.0f} s, Ready after {ended - began:.0f} s")
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
    """Let an operator that was started look at everything; nothing is to be done."""
    began = time.monotonic()
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            if await operator.metric("hmi_reconcile_seconds_count") > ADAPTERS:
                break
            await asyncio.sleep(0.5)  # between two looks at another process
    requests = await operator.metric("hmi_kube_requests_total")
    print(
        f"restart: all looked at after {time.monotonic() - began:.0f} s, {requests:.0f} requests to the API "
        f"server, {operator.resident_bytes() / 2**20:.0f} MiB"
    )
    assert requests < SLACK + ADAPTERS / 50, "pages of lists, and the lease meanwhile; nothing for each"
    assert await operator.metric("hmi_reconcile_failures_total") == 0
