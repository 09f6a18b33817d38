"""Catalog records whose objects are gone: when they are deleted, and when they must not be."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_catalog import FakeCatalog
from fake_control_plane import FakeControlPlane
from fake_versions import StoredAdapter, StoredDomain
from reconciler_fakes import Jobs

from hmi_api.errors import HmiError, InvalidInput, NotReady
from hmi_api.internal.catalog import AdapterRecord, DomainRecord, RegisteredCluster
from hmi_api.resources.manifests import parse_manifest
from hmi_operator.embedded import FileResourceStore
from hmi_operator.orphans import Orphan, OrphanCollector, OrphanGrace
from hmi_operator.ports import Ports, ResourceRef

pytestmark = pytest.mark.anyio

GRACE = OrphanGrace(seconds=100.0, inherited_seconds=1000.0)
KNOWN = RegisteredCluster(known_seconds=5.0, inherited=False)
HOTEL = ResourceRef("Domain", "shop", "hotel")
TOPIC = ResourceRef("TaskAdapter", "shop", "topic")


def hotel(uid: str = "u-hotel") -> StoredDomain:
    return StoredDomain(
        DomainRecord(uid=uid, tenant="shop", generation=1, spec_digest="sha256:d", base_uri="wheel://m")
    )


def topic(uid: str = "u-topic", domain: str = HOTEL.key) -> StoredAdapter:
    record = AdapterRecord(
        uid=uid,
        tenant="shop",
        generation=1,
        spec_digest="sha256:a",
        domain=domain,
        task_type="SequenceClassification",
    )
    return StoredAdapter(record)


class Store(FileResourceStore):
    """A store that can fail, and that can be limited to some namespaces."""

    error: HmiError | None = None
    covered: frozenset[str] | None = None

    def covers(self, namespace: str) -> bool:
        return self.covered is None or namespace in self.covered

    async def is_absent(self, ref: ResourceRef) -> bool:
        if self.error is not None:
            raise self.error
        return await super().is_absent(ref)


@dataclass
class Here:
    """A collector with its ports, and a clock that only the test moves."""

    store: Store
    plane: FakeControlPlane
    jobs: Jobs
    collector: OrphanCollector
    reported: list[Orphan]
    now: list[float] = field(default_factory=lambda: [0.0])

    @property
    def catalog(self) -> FakeCatalog:
        return self.plane.catalog

    async def round_after(self, seconds: float, claimed: RegisteredCluster = KNOWN) -> set[str]:
        """Move the clock and collect orphans; return the keys in the catalog afterwards."""
        self.now[0] += seconds
        await self.collector.collect(claimed)
        return {*self.catalog.domains, *self.catalog.adapters}


@pytest.fixture
def here(tmp_path: Path) -> Here:
    """A catalog with a Domain and a TaskAdapter, of which the store knows nothing."""
    store, plane, jobs = Store(tmp_path), FakeControlPlane(), Jobs()
    plane.catalog.domains[HOTEL.key] = hotel()
    plane.catalog.adapters[TOPIC.key] = topic()
    plane.catalog.page_items = 1
    now, reported = [0.0], list[Orphan]()
    collector = OrphanCollector(
        Ports(store, plane.client(), jobs), grace=GRACE, on_deleted=reported.append, clock=lambda: now[0]
    )
    return Here(store, plane, jobs, collector, reported, now)


async def test_orphans_are_deleted_after_their_grace_and_reported(here: Here) -> None:
    assert await here.round_after(0) == {HOTEL.key, TOPIC.key}
    assert await here.round_after(99) == {HOTEL.key, TOPIC.key}
    assert here.reported == []
    assert await here.round_after(2) == set()
    assert here.reported == [Orphan(TOPIC, "u-topic"), Orphan(HOTEL, "u-hotel")]
    assert here.jobs.deleted == ["u-topic", "u-hotel"]


async def test_a_resource_applied_again_within_its_grace_is_kept(
    here: Here, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    await here.round_after(0)
    for body in (domain_body, adapter_body):
        await here.store.apply(parse_manifest(body))
    assert await here.round_after(500) == {HOTEL.key, TOPIC.key}
    await here.store.delete(TOPIC)  # it had no finalizer yet
    assert await here.round_after(0) == {HOTEL.key, TOPIC.key}, "its grace starts again"
    assert await here.round_after(101) == {HOTEL.key}


@pytest.mark.parametrize("failing_page", [0, 1])
async def test_a_failed_list_deletes_nothing(here: Here, failing_page: int) -> None:
    here.catalog.adapters["shop/tone"] = replace(topic("u-tone"), order=1)
    await here.round_after(0)
    if failing_page == 0:
        here.plane.drop(request="GET /", times=100)
    else:
        here.plane.before("GET /adapters", lambda _: here.plane.drop(request="GET /", times=100))
    with pytest.raises(NotReady):
        await here.round_after(500)
    assert len(here.catalog.adapters) == 2


@pytest.mark.parametrize("error", [NotReady("ApiServerUnavailable", "Away."), InvalidInput("Refused", "403")])
async def test_a_store_that_does_not_answer_deletes_nothing(here: Here, error: HmiError) -> None:
    await here.round_after(0)
    here.store.error = error
    assert await here.round_after(500) == {HOTEL.key, TOPIC.key}
    here.store.error = None
    assert await here.round_after(1) == set(), "it is tried again"


async def test_a_resource_with_an_unreadable_file_is_kept(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "shop" / "taskadapters" / "topic.json"
    file.parent.mkdir(parents=True)
    file.write_text("{")
    await here.round_after(0)
    assert TOPIC.key in await here.round_after(500)


async def test_records_of_namespaces_that_are_not_watched_are_kept(here: Here) -> None:
    here.store.covered = frozenset({"zoo"})
    await here.round_after(0)
    assert await here.round_after(500) == {HOTEL.key, TOPIC.key}


async def test_a_rebuilt_cluster_has_a_longer_grace(here: Here) -> None:
    await here.round_after(0, RegisteredCluster(known_seconds=0, inherited=True))
    assert await here.round_after(999, RegisteredCluster(known_seconds=999, inherited=True)) == {
        HOTEL.key,
        TOPIC.key,
    }
    late = RegisteredCluster(known_seconds=1001, inherited=True)
    assert await here.round_after(2, late) == {HOTEL.key, TOPIC.key}, "missed only now"
    assert await here.round_after(101, late) == set()


async def test_a_record_adopted_meanwhile_is_not_deleted(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    await here.round_after(0)

    async def is_absent(ref: ResourceRef) -> bool:
        if ref == TOPIC:
            here.catalog.adapters[TOPIC.key] = topic("u-new")
        return True

    monkeypatch.setattr(here.store, "is_absent", is_absent)
    assert TOPIC.key in await here.round_after(500)


async def test_a_replica_that_lost_the_lease_deletes_nothing(tmp_path: Path, here: Here) -> None:
    def require_leadership() -> None:
        raise NotReady("LeaseLost", "Another replica works.")

    now = [0.0]
    collector = OrphanCollector(
        Ports(here.store, here.plane.client(), Jobs(), require_leadership),
        grace=GRACE,
        clock=lambda: now[0],
    )
    await collector.collect(KNOWN)
    now[0] = 500.0
    await collector.collect(KNOWN)
    assert set(here.catalog.adapters) == {TOPIC.key}


async def test_each_store_has_its_own_lasting_identity(tmp_path: Path) -> None:
    first = await FileResourceStore(tmp_path / "a").identity()
    assert await FileResourceStore(tmp_path / "a").identity() == first
    assert await FileResourceStore(tmp_path / "b").identity() != first


class Stopped(Exception):
    """The test has seen enough."""


@pytest.fixture
def slept(here: Here, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits of the collector, which pass at once until 700 seconds are over."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        here.now[0] += seconds
        if here.now[0] > 700.0:
            raise Stopped

    # The name in the module alone: servers of other tests sleep in threads of this process.
    monkeypatch.setattr("hmi_operator.orphans.asyncio", SimpleNamespace(sleep=sleep))
    return waits


async def test_the_registration_is_renewed_and_orphans_are_collected_every_five_minutes(
    here: Here, slept: list[float]
) -> None:
    here.plane.cluster = await here.store.identity()
    here.plane.drop(request="PUT /cluster")
    here.plane.drop(request="GET /domains")
    with pytest.raises(Stopped):
        await here.collector.run()
    assert slept == [5.0, *[30.0] * 24], "a failed registration is repeated sooner"
    assert here.plane.calls().count("PUT /cluster") == 25
    assert here.plane.calls().count("GET /domains") == 3, "a failed collection is repeated at its usual time"
    assert here.catalog.domains == {}


async def test_another_clusters_registration_ends_the_collector_and_delays_a_start(
    here: Here, slept: list[float]
) -> None:
    here.plane.cluster = "another"
    with pytest.raises(InvalidInput, match="OtherCluster"):
        await here.collector.run()
    with pytest.raises(Stopped):
        await here.collector.register_until_accepted()
    assert set(slept) == {5.0}
    here.plane.cluster = None
    await here.collector.register_until_accepted()
    assert here.plane.cluster == await here.store.identity()
