"""Many TaskAdapters at once: the operator's work for each is bounded, and so is its memory.

``HMI_SCALE=5000 pytest -s tests/operator/kube/test_scale.py`` measures with as many as are asked for.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from kube_server import KubeServer
from operator_harness import DOMAINS, TASK_ADAPTERS, Cluster, PromptJobs, cluster, is_ready
from operator_process import Process, process

from hmi_api.errors import HmiError
from hmi_api.wire import RunState, RunView
from hmi_operator.kube.api import KubeApi, Manifest
from hmi_operator.kube.errors import Conflict
from hmi_operator.kube.kinds import JOBS
from hmi_operator.kube.login import KopfLogin

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(3600)]

ADAPTERS = int(os.environ.get("HMI_SCALE", "25"))
LIMIT_SECONDS = 200 + ADAPTERS
AT_ONCE = 16
QUIET = {"HMI_LOG_LEVEL": "WARNING", "HMI_LEASE_SECONDS": "30"}
CALLS_PER_ADAPTER = 20
"""Requests to the API server for one TaskAdapter, from its creation until it serves."""


@dataclass
class JobController:
    """Stands in for the Job controller and the kubelet: every Job succeeds, and its run with it."""

    api: KubeApi
    jobs: PromptJobs
    namespace: str
    done: set[str] = field(default_factory=set)

    async def run(self) -> None:
        while True:
            # What fails on a busy machine is seen to in the next round.
            with contextlib.suppress(httpx.HTTPError, HmiError):
                await self._round()
            await asyncio.sleep(0.2)

    async def _round(self) -> None:
        pages = self.api.pages(JOBS, self.namespace, labels="hmi.dev/run", fields="status.successful=0")
        async for page in pages:
            await _each([job for job in page if job["metadata"]["uid"] not in self.done], self._finish)

    async def _finish(self, job: Manifest) -> None:
        run_id = job["metadata"]["labels"]["hmi.dev/run"]
        answer = await self.jobs.http.get(f"/internal/v1/runs/{run_id}")
        run = RunView.model_validate(answer.json())
        if run.state is not RunState.SUCCEEDED:
            await self.jobs.finish(run)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        conditions = [
            {"type": type_, "status": "True", "reason": "CompletionsReached", "lastTransitionTime": now}
            for type_ in ("SuccessCriteriaMet", "Complete")
        ]
        status = {"succeeded": 1, "startTime": now, "completionTime": now, "conditions": conditions}
        name = job["metadata"]["name"]
        await self.api.merge_patch(JOBS, self.namespace, name, {"status": status}, "status")
        self.done.add(job["metadata"]["uid"])


async def _each(items: list[Any], act: Any) -> None:
    """Do something to each, a few at once."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(item: Any) -> None:
        async with places:
            await act(item)

    await asyncio.gather(*(one(item) for item in items))


@asynccontextmanager
async def finishing_jobs(served: Any, here: Cluster) -> AsyncIterator[None]:
    headers = {"Authorization": f"Bearer {served.token}"}
    async with httpx.AsyncClient(base_url=served.url, headers=headers) as http, KubeApi(KopfLogin()) as api:
        controller = JobController(api, PromptJobs(http), here.namespace)
        running = asyncio.create_task(controller.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.wait({running})


async def create_adapters(here: Cluster, body: dict[str, Any]) -> None:
    async def create(number: int) -> None:
        metadata = {"name": f"task-{number}", "namespace": here.namespace}
        try:
            await here.api.create(TASK_ADAPTERS, here.namespace, body | {"metadata": metadata})
        except Conflict:  # the answer to the first try was lost
            return

    await _each(list(range(ADAPTERS)), create)


async def all_ready(here: Cluster) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            pages = here.api.pages(TASK_ADAPTERS, here.namespace)
            ready = sum([sum(map(is_ready, page)) async for page in pages])
            if ready == ADAPTERS:
                return
            await asyncio.sleep(1 + ADAPTERS / 1000)


async def calls(operator: Process) -> float:
    return await operator.metric("hmi_kube_requests_total")


async def test_many_adapters_become_ready_with_bounded_work_for_each(
    kubeconfig: KubeServer,
    namespace: str,
    served: Any,
    domain_body: dict[str, Any],
    adapter_body: dict[str, Any],
    tmp_path: Path,
) -> None:
    for body in (domain_body, adapter_body):
        body["metadata"].pop("namespace")
    domain_body["spec"]["corpus"] = [{"uri": "s3://b/c.jsonl"}]
    adapter_body["spec"]["data"] = {"train": {"uri": "s3://b/t.jsonl"}}
    async with cluster(kubeconfig, namespace) as here, finishing_jobs(served, here):
        with process(served, namespace, "operator", tmp_path, **QUIET) as operator:
            await here.apply(domain_body)
            await here.reached(DOMAINS, "hotel", is_ready)
            before, at_rest = await calls(operator), operator.resident_bytes()
            began = time.monotonic()
            await create_adapters(here, adapter_body)
            created = time.monotonic()
            await all_ready(here)
            ended = time.monotonic()
            per_adapter = (await calls(operator) - before) / ADAPTERS
            looks = await operator.metric("hmi_reconcile_seconds_count") / ADAPTERS
            print(
                f"\n{ADAPTERS} TaskAdapters: created in {created - began:.0f} s, ready after "
                f"{ended - began:.0f} s; each {per_adapter:.1f} requests to the API server, {looks:.1f} "
                f"reconciliations and {1000 * operator.cpu_seconds() / ADAPTERS:.0f} ms of the processor; "
                f"{at_rest / 2**20:.0f} MiB before, {operator.resident_bytes() / 2**20:.0f} MiB after"
            )
            assert len(served.plane.runs) == ADAPTERS + 1
            assert per_adapter < CALLS_PER_ADAPTER
        with process(served, namespace, "operator", tmp_path, **QUIET) as operator:
            began = time.monotonic()
            await _looked_at_all(operator)
            requests = await calls(operator)
            print(
                f"restart: all looked at after {time.monotonic() - began:.0f} s, "
                f"{requests:.0f} requests, {operator.resident_bytes() / 2**20:.0f} MiB"
            )
            assert len(served.plane.runs) == ADAPTERS + 1
            assert await operator.metric("hmi_reconcile_failures_total") == 0


async def _looked_at_all(operator: Process) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            if await operator.metric("hmi_reconcile_seconds_count") > ADAPTERS:
                return
            await asyncio.sleep(0.5)
