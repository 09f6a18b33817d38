"""Refreshes over the reconciler: what is started, by whom, with how many requests, and what is written."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fake_control_plane import FakeControlPlane
from fake_window_counts import window_array
from reconciler_fakes import Jobs

from hmi_api.internal.runs import DomainRunSpec, RunFailure, RunState
from hmi_api.internal.window_counts import DomainWindows, TenantWindows, WindowCountReport
from hmi_api.resources.domain import Domain, DomainStatus
from hmi_api.resources.manifests import parse_manifest
from hmi_operator.embedded import FileResourceStore
from hmi_operator.kubernetes.events import events_of
from hmi_operator.ports import Ports, ResourceRef
from hmi_operator.reconciler import Reconciler, ReconcileResult

pytestmark = pytest.mark.anyio

DOMAIN = ResourceRef("Domain", "shop", "hotel")
TOPIC = ResourceRef("TaskAdapter", "shop", "topic")
ROW = "/domains/shop/hotel"
SCHEDULE = {"refresh": {"schedule": "0 3 * * *", "minMissRate": 1}}


@dataclass
class Here:
    """A published Domain with a TaskAdapter, whose table is refreshed at three in the morning."""

    store: FileResourceStore
    plane: FakeControlPlane
    body: dict[str, Any]
    jobs: Jobs = field(default_factory=Jobs)
    now: datetime = datetime(2026, 11, 29, 12, tzinfo=UTC)
    events: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.take_over()

    def take_over(self) -> None:
        """Let a replica that knows nothing lead."""
        ports = Ports(self.store, self.plane.client(), self.jobs, clock=lambda: self.now)
        self.engine = Reconciler(
            ports,
            on_status_change=lambda resource, old, new: self.events.extend(
                event.note for event in events_of(old, new)
            ),
        )

    async def reconcile(self) -> ReconcileResult:
        self.plane.requests.clear()
        self.events.clear()
        return await self.engine.reconcile(DOMAIN)

    async def annotate(self, **annotations: str) -> None:
        named = {f"hmi.dev/{name.replace('_', '-')}": value for name, value in annotations.items()}
        await self.store.apply(
            parse_manifest(self.body | {"metadata": self.body["metadata"] | {"annotations": named}})
        )

    def look_up(self, lookups: int = 1000, hits: int = 700) -> None:
        """Report traffic of a runtime."""
        current = self.plane.catalog.domains["shop/hotel"].current
        assert current is not None
        windows = TenantWindows(tenant_id="tenant_shop", **window_array({7: 3}).model_dump())
        counted = DomainWindows(
            domain="shop/hotel",
            version=current.version,
            layers_digest=current.layers.digest,
            lookups=lookups,
            hits=hits,
            tenants=[windows],
        )
        sequence = len(self.plane.requests) + self.now.toordinal() * 1000 + current.version
        self.plane.windows.record(WindowCountReport(incarnation="one", sequence=sequence, domains=[counted]))

    @property
    def status(self) -> DomainStatus:
        found = self.store.get(DOMAIN)
        assert isinstance(found, Domain)
        return found.status

    @property
    def uid(self) -> str:
        found = self.store.get(DOMAIN)
        assert found is not None
        return found.metadata.uid

    def refreshes(self) -> list[str]:
        """Return the ids of all refresh runs."""
        return list(self.plane.catalog.refreshes.runs)


@pytest.fixture
async def here(tmp_path: Path, domain_body: dict[str, Any], adapter_body: dict[str, Any]) -> Here:
    plane, store = FakeControlPlane(), FileResourceStore(tmp_path)
    plane.runtimes.start("r1")
    body = domain_body | {"spec": domain_body["spec"] | {"plot": SCHEDULE}}
    await store.apply(parse_manifest(body))
    await store.apply(parse_manifest(adapter_body))
    made = Here(store, plane, body)
    await made.reconcile()
    (run,) = plane.catalog.runs.values()
    plane.catalog.finish_run(run.id)
    await made.reconcile()
    await made.engine.reconcile(TOPIC)
    plane.catalog.finish_run(plane.catalog.created_runs[-1])
    return made


async def test_a_domain_that_waits_takes_two_requests(here: Here) -> None:
    result = await here.reconcile()
    assert here.plane.calls() == [f"GET {ROW}/refreshes", f"GET {ROW}"]
    assert here.status.refresh is not None
    assert here.status.refresh.next_time == "2026-11-30T03:00:00Z"
    assert result.requeue_after == 60.0


async def test_one_run_is_started_at_its_time_although_leaders_change(here: Here) -> None:
    here.look_up()
    here.now += timedelta(days=1)
    await here.reconcile()
    here.take_over()
    lost = here.status.model_copy(update={"run_ref": None})
    await here.store.write_status(DOMAIN, here.uid, lost)
    await here.reconcile()
    (run,) = here.refreshes()
    assert here.jobs.started >= {run}
    assert here.status.run_ref == run
    spec = here.plane.catalog.runs[run].spec
    assert isinstance(spec, DomainRunSpec)
    assert spec.refresh is not None
    assert spec.refresh.hit_rate == 0.7


async def test_a_refresh_is_published_and_told_and_changes_no_adapter(here: Here) -> None:
    here.look_up()
    await here.annotate(refresh="now")
    await here.reconcile()
    (run,) = here.refreshes()
    assert (here.status.phase, here.status.version, here.status.run_ref) == ("Ready", 1, run)
    here.plane.catalog.refreshes.finish(run)
    result = await here.reconcile()
    assert result.enqueue == ()
    assert (here.status.phase, here.status.version, here.status.run_ref) == ("Ready", 2, None)
    assert here.status.entries == 6
    assert here.events == [
        "Version 2 has a refreshed table (Request): 3 windows came in, 2 left, 6 in all; "
        "70.0% of lookups hit the table before."
    ]
    for _ in range(2):
        await here.reconcile()
    assert here.refreshes() == [run]
    assert here.events == []
    adapter = here.plane.runtimes.require("r1").adapters["shop/topic"][1]
    assert (adapter.version, adapter.domain_version) == (1, 2)


async def test_an_earlier_table_is_put_back_and_refreshing_resumes(here: Here) -> None:
    here.look_up()
    await here.annotate(refresh="now")
    await here.reconcile()
    (run,) = here.refreshes()
    here.plane.catalog.refreshes.finish(run)
    await here.reconcile()
    await here.annotate(refresh="now", table_version="1")
    await here.reconcile()
    await here.reconcile()
    assert (here.status.version, here.status.entries) == (3, 5)
    assert "Version 3 has the table of version 1 again." in here.events
    await here.annotate(refresh="now")
    await here.reconcile()
    assert here.refreshes() == [run]


async def test_a_failed_refresh_leaves_the_domain_ready(here: Here) -> None:
    here.look_up()
    await here.annotate(refresh="now")
    await here.reconcile()
    (run,) = here.refreshes()
    plane = here.plane.catalog
    plane.fail_run(run, RunFailure(reason="TableInvalid", message="It is damaged."))
    await here.reconcile()
    assert plane.runs[run].state is RunState.FAILED
    assert here.status.phase == "Ready"
    refreshed = next(one for one in here.status.conditions if one.type == "Refreshed")
    assert (refreshed.status, refreshed.reason) == ("False", "TableInvalid")


async def test_deleting_a_domain_stops_its_refresh(here: Here) -> None:
    here.look_up()
    await here.annotate(refresh="now")
    await here.reconcile()
    await here.store.delete(TOPIC)
    await here.engine.reconcile(TOPIC)
    await here.store.delete(DOMAIN)
    await here.reconcile()
    assert here.store.get(DOMAIN) is None
    assert here.jobs.deleted
    assert all(run.state is RunState.FAILED for run in here.plane.catalog.runs.values())
