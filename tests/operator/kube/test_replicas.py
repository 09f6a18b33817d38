"""Two replicas as processes of their own: one works, the other takes over; probes, metrics and signals."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kube_objects import LEASES
from kube_server import KubeServer
from operator_harness import DOMAINS, Cluster, until
from operator_process import Process, process

pytestmark = pytest.mark.anyio


@pytest.fixture
async def two(here: Cluster, served: Any, tmp_path: Path) -> AsyncIterator[tuple[Process, Process]]:
    """A leader and a standby."""
    with (
        process(served, here.namespace, "one", tmp_path) as one,
        process(served, here.namespace, "two", tmp_path) as two,
    ):
        await until(one.ready)
        await until(two.ready)

        async def some_leads() -> bool:
            return await one.leads() or await two.leads()

        await until(some_leads)
        yield (one, two) if await one.leads() else (two, one)


async def holder(here: Cluster) -> str:
    found = await here.get(LEASES, "hmi-operator")
    return str(found["spec"]["holderIdentity"]) if found else ""


async def apply_and_wait(here: Cluster, domain_body: dict[str, Any], name: str) -> None:
    """Apply a Domain and wait until a replica has taken it up."""
    body = domain_body | {"metadata": {"name": name}}
    await here.apply(body)
    await here.reached(DOMAINS, name, lambda found: "finalizers" in found["metadata"])


async def test_the_standby_takes_over_when_the_leader_is_killed(
    here: Cluster, two: tuple[Process, Process], domain_body: dict[str, Any]
) -> None:
    leader, standby = two
    assert await holder(here) == leader.name
    assert not await standby.leads()
    assert await standby.ready()
    assert await standby.answers("/healthz") == "ok"
    await apply_and_wait(here, domain_body, "hotel")
    leader.running.send_signal(signal.SIGKILL)
    await until(standby.leads)
    assert await holder(here) == standby.name
    await apply_and_wait(here, domain_body, "inn")


async def test_a_suspended_leader_does_not_lead_after_it_resumes(
    here: Cluster, two: tuple[Process, Process], domain_body: dict[str, Any]
) -> None:
    leader, standby = two
    leader.running.send_signal(signal.SIGSTOP)
    await until(standby.leads)
    await apply_and_wait(here, domain_body, "hotel")
    leader.running.send_signal(signal.SIGCONT)
    await until(leader.ready)
    assert not await leader.leads()
    assert await standby.leads()
    assert leader.running.poll() is None


async def test_a_leader_that_is_stopped_releases_the_lease(
    here: Cluster, two: tuple[Process, Process], domain_body: dict[str, Any]
) -> None:
    leader, standby = two
    leader.running.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(leader.running.wait, 30) == 0
    await until(standby.leads)
    await apply_and_wait(here, domain_body, "hotel")

    async def metrics() -> str | None:  # a reconciliation is counted when it has ended, after its writes
        said = await standby.answers("/metrics")
        return said if said and 'hmi_reconcile_seconds_count{kind="Domain"}' in said else None

    said: str = await until(metrics)
    assert "hmi_reconcile_queue_length" in said
    assert 'hmi_kube_requests_total{code="200",kind="domains",method="PATCH"}' in said


def test_a_setting_that_is_missing_or_wrong_is_named(kubeconfig: KubeServer) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "HMI_LEASE_SECONDS": "soon",
        "HMI_CONTROL_PLANE_URL": "ftp://x",
    }
    done = subprocess.run(
        [sys.executable, "-m", "hmi_operator"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    for name in ("HMI_LEASE_SECONDS", "HMI_CONTROL_PLANE_URL", "HMI_TRAINER_IMAGE"):
        assert name in done.stderr
