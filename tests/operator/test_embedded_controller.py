"""The local reconciler end to end: files, real subprocesses, and HTTP to the fake control plane."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from planning_fixtures import is_true

from hmi_api.errors import InvalidInput
from hmi_api.internal.client import ControlPlaneClient
from hmi_api.resources.conditions import find_condition
from hmi_api.resources.manifests import parse_manifest
from hmi_operator.embedded import EmbeddedController, FileResourceStore, SubprocessJobs
from hmi_operator.embedded.processes import read_pid_file
from hmi_operator.ports import ResourceRef

DOMAIN = ResourceRef("Domain", "shop", "hotel")
ADAPTER = ResourceRef("TaskAdapter", "shop", "topic")
LIMIT_SECONDS = 30


async def until(condition: Callable[[], Any]) -> Any:
    """Wait for a condition, with a limit."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.02)


class System:
    """A store, its reconciler and a home folder."""

    def __init__(self, home: Path, jobs: SubprocessJobs) -> None:
        self.store = FileResourceStore(home / "resources")
        self.jobs = jobs
        self.runs = home / "runs"

    async def apply(self, body: dict[str, Any]) -> None:
        await self.store.apply(parse_manifest(body))

    async def status(self, ref: ResourceRef) -> Any:
        found = self.store.get(ref)
        assert found is not None
        return found.status

    async def reached(self, ref: ResourceRef, condition: Callable[[Any], bool]) -> Any:
        async def look() -> Any:
            found = self.store.get(ref)
            return found.status if found is not None and condition(found.status) else None

        return await until(look)


@asynccontextmanager
async def running(served: Any, home: Path) -> AsyncIterator[System]:
    """Run a reconciler over a home folder, as ``hmi up`` does."""
    jobs = SubprocessJobs(home / "runs", served.environment, program=served.program, grace_seconds=2)
    system = System(home, jobs)
    stop = asyncio.Event()
    async with ControlPlaneClient(served.url, served.token) as control_plane:
        reconciler = EmbeddedController(system.store, control_plane, jobs)
        task = asyncio.create_task(reconciler.run(stop))
        try:
            yield system
        finally:
            stop.set()
            await task


def ready(status: Any) -> bool:
    return is_true(status.conditions, "Ready") and status.phase == "Ready"


def condition(status: Any, type_: str) -> Any:
    return find_condition(status.conditions, type_)


@pytest.mark.anyio
async def test_an_adapter_applied_before_its_domain_becomes_ready(
    served: Any, tmp_path: Path, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    async with running(served, tmp_path) as system:
        await system.apply(adapter_body)
        waiting = await system.reached(ADAPTER, lambda status: status.phase == "Waiting")
        assert condition(waiting, "DomainReady").reason == "DomainNotFound"
        await system.apply(domain_body)
        status = await system.reached(ADAPTER, ready)
        assert (status.version, status.domain, status.run_ref) == (1, "hotel/1", None)
        assert (await system.status(DOMAIN)).entries == 5
        assert served.catalog.tenants == {"shop"}


@pytest.mark.anyio
async def test_a_restart_keeps_the_status_and_trains_nothing_again(
    served: Any, tmp_path: Path, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    async with running(served, tmp_path) as system:
        await system.apply(domain_body)
        await system.apply(adapter_body)
        before = await system.reached(ADAPTER, ready)
    async with running(served, tmp_path) as system:
        assert await system.status(ADAPTER) == before
        await asyncio.sleep(0)
        await system.reached(ADAPTER, ready)
    assert len(served.catalog.created_runs) == 2


@pytest.mark.anyio
async def test_a_failed_gate_leaves_the_old_version_serving(
    served: Any, tmp_path: Path, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    async with running(served, tmp_path) as system:
        await system.apply(domain_body)
        await system.apply(adapter_body)
        await system.reached(ADAPTER, ready)
        served.train("topic", "gate")
        adapter_body["spec"]["training"] = {"epochs": 3}
        await system.apply(adapter_body)
        status = await system.reached(ADAPTER, lambda status: status.phase == "Degraded")
        assert status.version == 1
        assert condition(status, "GatePassed").reason == "GateNotReached"
        assert "accuracy 0.5 is under 0.9" in condition(status, "GatePassed").message
        assert is_true(status.conditions, "Ready")
        adapter_body["spec"]["training"] = {"epochs": 4}
        served.train("topic", "succeed")
        await system.apply(adapter_body)
        # The version that missed its gate has number 2.
        assert (await system.reached(ADAPTER, ready)).version == 3


@pytest.mark.anyio
async def test_going_back_to_an_earlier_spec_publishes_it_again(
    served: Any, tmp_path: Path, domain_body: dict[str, Any]
) -> None:
    async with running(served, tmp_path) as system:
        for steps, version in ((10, 1), (20, 2), (10, 3)):
            domain_body["spec"]["training"] = {"steps": steps}
            await system.apply(domain_body)
            wanted = version
            await system.reached(
                DOMAIN, lambda status, wanted=wanted: ready(status) and status.version == wanted
            )


@pytest.mark.anyio
async def test_a_retrained_domain_moves_its_adapters(
    served: Any, tmp_path: Path, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    async with running(served, tmp_path) as system:
        await system.apply(domain_body)
        await system.apply(adapter_body)
        await system.reached(ADAPTER, ready)
        domain_body["spec"]["training"] = {"steps": 7}
        await system.apply(domain_body)
        status = await system.reached(ADAPTER, lambda status: ready(status) and status.version == 2)
        assert status.domain == "hotel/2"


@pytest.mark.anyio
async def test_a_run_killed_at_any_moment_is_resumed(
    served: Any, tmp_path: Path, domain_body: dict[str, Any]
) -> None:
    served.train("hotel", "hang", "succeed")
    async with running(served, tmp_path) as system:
        await system.apply(domain_body)
        started = await until(lambda: list(system.runs.glob("*/*/starts")))
        pid = read_pid_file(started[0].with_name("process.json"))
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await system.reached(DOMAIN, lambda status: status.phase == "Retrying")
    async with running(served, tmp_path) as system:
        await system.reached(DOMAIN, ready)
        # Only the log of a run that has succeeded is kept.
        assert started[0].with_name("run.log").read_text().count("started") == 2
    assert len(served.catalog.created_runs) == 1


@pytest.mark.anyio
async def test_stopping_ends_training_processes_and_a_restart_resumes_them(
    served: Any, tmp_path: Path, domain_body: dict[str, Any]
) -> None:
    served.train("hotel", "hang", "succeed")
    async with running(served, tmp_path) as system:
        await system.apply(domain_body)
        started = await until(lambda: list(system.runs.glob("*/*/starts")))
    assert read_pid_file(started[0].with_name("process.json")) is None
    async with running(served, tmp_path) as system:
        await system.reached(DOMAIN, ready)


@pytest.mark.anyio
async def test_a_failed_resource_reports_its_reason_and_others_become_ready(
    served: Any, tmp_path: Path, domain_body: dict[str, Any]
) -> None:
    served.train("hotel", "fail")
    other = domain_body | {"metadata": {"name": "bikes", "namespace": "shop"}}
    async with running(served, tmp_path) as system:
        await system.apply(domain_body)
        await system.apply(other)
        status = await system.reached(DOMAIN, lambda status: status.phase == "Failed")
        failed = condition(status, "CorpusReady")
        assert (failed.status, failed.reason) == ("False", "CorpusEmpty")
        assert failed.message.startswith("There is no text. To train again,")
        assert condition(status, "Ready").reason == "CorpusEmpty"
        await system.reached(ResourceRef("Domain", "shop", "bikes"), ready)


@pytest.mark.anyio
async def test_a_deleted_domain_waits_for_its_dependents_and_then_leaves_nothing(
    served: Any, tmp_path: Path, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    async with running(served, tmp_path) as system:
        await system.apply(domain_body)
        await system.apply(adapter_body)
        await system.reached(ADAPTER, ready)
        await system.store.delete(DOMAIN)
        status = await system.reached(DOMAIN, lambda status: status.phase == "Terminating")
        assert condition(status, "Ready").reason == "InUse"
        assert "TaskAdapter shop/topic" in condition(status, "Ready").message
        assert "shop/hotel" in served.catalog.domains
        await system.store.delete(ADAPTER)

        async def gone() -> bool:
            return system.store.count() == 0

        await until(gone)
        assert not served.catalog.domains
        assert not served.catalog.adapters
        assert list(system.runs.iterdir()) == []
        assert not list((tmp_path / "resources").glob("*/*/*.json"))


@pytest.mark.anyio
async def test_requests_are_repeated_while_the_control_plane_is_unavailable(
    served: Any, tmp_path: Path, domain_body: dict[str, Any]
) -> None:
    failing = served.plane.fail(503, times=6)
    async with running(served, tmp_path) as system:
        await system.apply(domain_body)
        status = await system.reached(DOMAIN, ready)
        assert is_true(status.conditions, "Accepted")
    assert failing.left == 0


@pytest.mark.anyio
async def test_a_refusal_by_the_control_plane_is_in_the_status(
    served: Any, tmp_path: Path, domain_body: dict[str, Any]
) -> None:
    served.plane.fail(409, "NameTaken", request="PUT /domains/shop/hotel", times=100)
    async with running(served, tmp_path) as system:
        await system.apply(domain_body)
        status = await system.reached(DOMAIN, lambda status: status.phase == "Failed")
        accepted = condition(status, "Accepted")
        assert (accepted.status, accepted.reason) == ("False", "NameTaken")


@pytest.mark.anyio
async def test_the_same_manifests_in_a_new_folder_adopt_the_catalogs_records(
    served: Any, tmp_path: Path, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    async with running(served, tmp_path / "old") as system:
        for body in (domain_body, adapter_body):
            await system.apply(body)
        await system.reached(ADAPTER, ready)
    runs = set(served.catalog.created_runs)
    served.plane.cluster = None  # silent for long enough
    async with running(served, tmp_path / "new") as system:
        for body in (adapter_body, domain_body):
            await system.apply(body)
        await system.reached(ADAPTER, ready)
        await system.reached(DOMAIN, ready)
    assert set(served.catalog.created_runs) == runs


@pytest.mark.anyio
async def test_nothing_is_reconciled_in_the_catalog_of_another_store(
    served: Any, tmp_path: Path, domain_body: dict[str, Any]
) -> None:
    served.plane.cluster = "another"
    with pytest.raises(InvalidInput) as caught:
        async with running(served, tmp_path) as system:
            await system.apply(domain_body)
    assert caught.value.reason == "OtherCluster"
    assert served.catalog.domains == {}
