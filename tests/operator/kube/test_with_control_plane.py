"""The operator between a real API server and the real control plane: its conditions about serving."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from operator_harness import (
    DOMAINS,
    TASK_ADAPTERS,
    Cluster,
    condition,
    has_phase,
    is_ready,
    replica,
)
from serving import serving

from hmi_control_plane.app import create_app
from hmi_control_plane.settings import Settings

pytestmark = pytest.mark.anyio

TOKEN = "the-internal-token-of-this-test"


@dataclass
class ControlPlane:
    """The real control plane, and the reports of a simulated runtime."""

    url: str
    token: str = TOKEN

    async def say(self, method: str, path: str, body: Any = None) -> None:
        headers = {"Authorization": f"Bearer {self.token}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers) as http:
            answer = await http.request(method, f"/internal/v1/runtimes/r1{path}", json=body)
            answer.raise_for_status()

    async def register(self) -> None:
        hello = {"url": "http://r1", "device": "cpu", "capacityBytes": 1 << 30, "incarnation": "i1"}
        await self.say("PUT", "", hello)

    async def heartbeat(self, **said: Any) -> None:
        await self.say("POST", "/heartbeat", {"incarnation": "i1", "freeBytes": 1 << 30, **said})


@pytest.fixture
def served(sqlite_url: str, tmp_path: Path) -> Iterator[ControlPlane]:
    """The control plane on SQLite; a runtime is believed for long, so that none need be kept up."""
    settings = Settings(
        database_url=sqlite_url,
        artifacts=str(tmp_path / "artifacts"),
        usage_dir=tmp_path / "usage",
        internal_token=TOKEN,
        admin_key="the-admin-key-of-this-test",
        runtime_lost_after_seconds=600.0,
    )
    with serving(create_app(settings)) as url:
        yield ControlPlane(url)


def version_ref(key: str, version: int) -> dict[str, Any]:
    """Return how a heartbeat names one version of an adapter."""
    return {"adapter": key, "version": version}


def says(type_: str, reason: str) -> Any:
    def check(manifest: dict[str, Any]) -> bool:
        found = condition(manifest, type_)
        return found is not None and found.reason == reason

    return check


async def test_ready_follows_the_runtimes_reports(
    here: Cluster, served: ControlPlane, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    async with replica(served, here.namespace):
        await here.apply_all(domain_body, adapter_body)
        await here.reached(DOMAINS, "hotel", is_ready)
        alone = await here.reached(TASK_ADAPTERS, "topic", says("Scheduled", "NoRuntime"))
        assert not is_ready(alone)
        assert alone["status"]["phase"] == "NoRuntime"
        scheduled = condition(alone, "Scheduled")
        assert scheduled is not None
        assert scheduled.message == "No runtime is running; start one (runtime pools may be scaled to zero)."

        await served.register()
        await here.reached(TASK_ADAPTERS, "topic", says("Scheduled", "Placed"))
        key = f"{here.namespace}/topic"
        broken = {"adapter": key, "version": 1, "reason": "ArtifactDamaged", "message": "A digest differs."}
        await served.heartbeat(failed=[broken])
        failed = await here.reached(TASK_ADAPTERS, "topic", says("Loaded", "ArtifactDamaged"))
        assert not is_ready(failed)
        assert says("Ready", "ArtifactDamaged")(failed)

        await served.heartbeat(ready=[version_ref(key, 1)])
        await here.reached(TASK_ADAPTERS, "topic", is_ready)
        await served.heartbeat(gone=[version_ref(key, 1)])
        lost = await here.reached(TASK_ADAPTERS, "topic", has_phase("Loading"))
        assert not is_ready(lost)

        await here.delete(TASK_ADAPTERS, "topic")
        await here.delete(DOMAINS, "hotel")
        await here.gone(TASK_ADAPTERS, "topic")
        await here.gone(DOMAINS, "hotel")


async def test_ready_stays_while_the_next_version_is_loaded(
    here: Cluster, served: ControlPlane, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    key = f"{here.namespace}/topic"
    async with replica(served, here.namespace):
        await served.register()
        await here.apply_all(domain_body, adapter_body)
        await here.reached(TASK_ADAPTERS, "topic", says("Scheduled", "Placed"))
        await served.heartbeat(ready=[version_ref(key, 1)])
        first = await here.reached(TASK_ADAPTERS, "topic", is_ready)

        adapter_body["spec"]["data"] = {"train": {"uri": "s3://bucket/more.jsonl"}}
        await here.apply(adapter_body)
        changing = await here.reached(
            TASK_ADAPTERS, "topic", lambda found: found["status"].get("version") == 2
        )
        assert says("Ready", "PreviousVersion")(changing)
        loaded = condition(changing, "Loaded")
        assert loaded is not None
        assert loaded.message == "Version 2 is being fetched by r1. Version 1 serves on r1."
        assert changing["status"]["phase"] == "Updating"

        await served.heartbeat(ready=[version_ref(key, 2)], gone=[version_ref(key, 1)])
        changed = await here.reached(TASK_ADAPTERS, "topic", is_ready)
        before, after = condition(first, "Ready"), condition(changed, "Ready")
        assert before is not None
        assert after is not None
        assert after.message == "Version 2 serves."
        assert after.last_transition_time == before.last_transition_time, "it was Ready all the time"
