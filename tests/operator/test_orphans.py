"""Rows of the catalog whose objects are gone: when they are erased, and when they must not be."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fake_catalog import FakeCatalog, StoredAdapter, StoredDomain
from fake_control_plane import FakeControlPlane
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
    """A store that may not be asked, and may not look after everything."""

    trouble: HmiError | None = None
    covered: frozenset[str] | None = None

    def covers(self, namespace: str) -> bool:
        return self.covered is None or namespace in self.covered

    async def is_absent(self, ref: ResourceRef) -> bool:
        if self.trouble is not None:
            raise self.trouble
        return await super().is_absent(ref)


@dataclass
class Here:
    """A collector with its ports, and a clock that only the test moves."""

    store: Store
    plane: FakeControlPlane
    jobs: Jobs
    keeper: OrphanCollector
    told: list[Orphan]
    now: list[float] = field(default_factory=lambda: [0.0])

    @property
    def catalog(self) -> FakeCatalog:
        return self.plane.catalog

    async def round_after(self, seconds: float, claimed: RegisteredCluster = KNOWN) -> set[str]:
        """Move the clock and collect orphans; return the keys in the catalog afterwards."""
        self.now[0] += seconds
        await self.keeper.collect(claimed)
        return {*self.catalog.domains, *self.catalog.adapters}


@pytest.fixture
def here(tmp_path: Path) -> Here:
    """A catalog with a Domain and a TaskAdapter, of which the store knows nothing."""
    store, plane, jobs = Store(tmp_path), FakeControlPlane(), Jobs()
    plane.catalog.domains[HOTEL.key] = hotel()
    plane.catalog.adapters[TOPIC.key] = topic()
    plane.catalog.page_items = 1
    now, told = [0.0], list[Orphan]()
    keeper = OrphanCollector(
        Ports(store, plane.client(), jobs), grace=GRACE, on_deleted=told.append, clock=lambda: now[0]
    )
    return Here(store, plane, jobs, keeper, told, now)


async def test_orphans_are_erased_after_their_grace_and_told_of(here: Here) -> None:
    assert await here.round_after(0) == {HOTEL.key, TOPIC.key}
    assert await here.round_after(99) == {HOTEL.key, TOPIC.key}
    assert here.told == []
    assert await here.round_after(2) == set()
    assert here.told == [Orphan(TOPIC, "u-topic"), Orphan(HOTEL, "u-hotel")]
    assert here.jobs.erased == ["u-topic", "u-hotel"]


async def test_what_comes_back_within_its_grace_is_kept(
    here: Here, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    await here.round_after(0)
    for body in (domain_body, adapter_body):
        await here.store.apply(parse_manifest(body))
    assert await here.round_after(500) == {HOTEL.key, TOPIC.key}
    await here.store.delete(TOPIC)  # it had no finalizer yet
    assert await here.round_after(0) == {HOTEL.key, TOPIC.key}, "its grace begins anew"
    assert await here.round_after(101) == {HOTEL.key}


@pytest.mark.parametrize("failing_page", [0, 1])
async def test_a_list_that_failed_erases_nothing(here: Here, failing_page: int) -> None:
    here.catalog.adapters["shop/tone"] = replace(topic("u-tone"), order=1)
    await here.round_after(0)
    if failing_page == 0:
        here.plane.drop(request="GET /", times=100)
    else:
        here.plane.before("GET /adapters", lambda _: here.plane.drop(request="GET /", times=100))
    with pytest.raises(NotReady):
        await here.round_after(500)
    assert len(here.catalog.adapters) == 2


@pytest.mark.parametrize(
    "trouble", [NotReady("ApiServerUnavailable", "Away."), InvalidInput("Refused", "403")]
)
async def test_a_store_that_cannot_be_asked_erases_nothing(here: Here, trouble: HmiError) -> None:
    await here.round_after(0)
    here.store.trouble = trouble
    assert await here.round_after(500) == {HOTEL.key, TOPIC.key}
    here.store.trouble = None
    assert await here.round_after(1) == set(), "it is tried again"


async def test_a_file_that_cannot_be_read_is_no_absence(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "shop" / "taskadapters" / "topic.json"
    file.parent.mkdir(parents=True)
    file.write_text("{")
    await here.round_after(0)
    assert TOPIC.key in await here.round_after(500)


async def test_namespaces_that_are_not_looked_after_are_left_alone(here: Here) -> None:
    here.store.covered = frozenset({"zoo"})
    await here.round_after(0)
    assert await here.round_after(500) == {HOTEL.key, TOPIC.key}


async def test_a_rebuilt_cluster_has_longer(here: Here) -> None:
    await here.round_after(0, RegisteredCluster(known_seconds=0, inherited=True))
    assert await here.round_after(999, RegisteredCluster(known_seconds=999, inherited=True)) == {
        HOTEL.key,
        TOPIC.key,
    }
    late = RegisteredCluster(known_seconds=1001, inherited=True)
    assert await here.round_after(2, late) == {HOTEL.key, TOPIC.key}, "missed only now"
    assert await here.round_after(101, late) == set()


async def test_what_was_adopted_meanwhile_is_not_erased(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    await here.round_after(0)

    async def is_absent(ref: ResourceRef) -> bool:
        if ref == TOPIC:
            here.catalog.adapters[TOPIC.key] = topic("u-new")
        return True

    monkeypatch.setattr(here.store, "is_absent", is_absent)
    assert TOPIC.key in await here.round_after(500)


async def test_who_may_not_act_any_more_erases_nothing(tmp_path: Path, here: Here) -> None:
    def require_leadership() -> None:
        raise NotReady("LeaseLost", "Another replica works.")

    now = [0.0]
    keeper = OrphanCollector(
        Ports(here.store, here.plane.client(), Jobs(), require_leadership),
        grace=GRACE,
        clock=lambda: now[0],
    )
    await keeper.collect(KNOWN)
    now[0] = 500.0
    await keeper.collect(KNOWN)
    assert set(here.catalog.adapters) == {TOPIC.key}


async def test_a_store_keeps_its_identity_and_no_other_has_it(tmp_path: Path) -> None:
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

    monkeypatch.setattr("hmi_operator.orphans.asyncio.sleep", sleep)
    return waits


async def test_the_claim_is_renewed_and_orphans_are_collected_every_five_minutes(
    here: Here, slept: list[float]
) -> None:
    here.plane.cluster = await here.store.identity()
    here.plane.drop(request="PUT /cluster")
    here.plane.drop(request="GET /domains")
    with pytest.raises(Stopped):
        await here.keeper.run()
    assert slept == [5.0, *[30.0] * 24], "a claim that failed is repeated sooner"
    assert here.plane.calls().count("PUT /cluster") == 25
    assert here.plane.calls().count("GET /domains") == 3, "a collection that failed is repeated at its time"
    assert here.catalog.domains == {}


async def test_another_cluster_ends_the_collector_and_is_waited_for_at_the_start(
    here: Here, slept: list[float]
) -> None:
    here.plane.cluster = "another"
    with pytest.raises(InvalidInput, match="OtherCluster"):
        await here.keeper.run()
    with pytest.raises(Stopped):
        await here.keeper.register_until_accepted()
    assert set(slept) == {5.0}
    here.plane.cluster = None
    await here.keeper.register_until_accepted()
    assert here.plane.cluster == await here.store.identity()
