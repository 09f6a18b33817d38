"""The poller enqueues the TaskAdapters whose ETag in the catalog has changed, and no others."""

import pytest
from fake_catalog import StoredAdapter
from fake_control_plane import FakeControlPlane
from planning_fixtures import adapter, adapter_version, observed_adapter

from hmi_api.errors import NotReady
from hmi_api.internal.catalog import MAX_ETAGS, AdapterKeys
from hmi_operator.etag_poller import ETAGS_PER_SECOND, SHORTEST_SECONDS, EtagPoller
from hmi_operator.ports import ResourceRef

pytestmark = pytest.mark.anyio


@pytest.fixture
def plane() -> FakeControlPlane:
    return FakeControlPlane()


@pytest.fixture
def woken() -> list[ResourceRef]:
    return []


@pytest.fixture
def feed(plane: FakeControlPlane, woken: list[ResourceRef]) -> EtagPoller:
    return EtagPoller(plane.client(), woken.append)


def declare(plane: FakeControlPlane, feed: EtagPoller, *keys: str) -> None:
    """Have TaskAdapters in the catalog whose views were read."""
    for key in keys:
        record = observed_adapter(adapter()).view.record
        plane.catalog.adapters[key] = StoredAdapter(record.model_copy(update={"uid": f"uid of {key}"}))
        feed.record(key, plane.catalog.adapter_view(key))


def change(plane: FakeControlPlane, key: str) -> None:
    """Publish another version of a TaskAdapter."""
    row = plane.catalog.adapters[key]
    row.current = adapter_version("d", version=row.current.version + 1 if row.current else 1)


async def test_a_task_adapter_with_the_same_etag_is_not_enqueued(
    feed: EtagPoller, plane: FakeControlPlane, woken: list[ResourceRef]
) -> None:
    declare(plane, feed, "shop/topic")
    await feed.poll()
    assert plane.calls() == ["POST /adapters/etags"]
    assert woken == []


async def test_a_task_adapter_with_another_etag_is_enqueued_once(
    feed: EtagPoller, plane: FakeControlPlane, woken: list[ResourceRef]
) -> None:
    declare(plane, feed, "shop/topic", "shop/tone")
    change(plane, "shop/topic")
    await feed.poll()
    await feed.poll()
    assert woken == [ResourceRef("TaskAdapter", "shop", "topic")]
    change(plane, "shop/topic")
    await feed.poll()
    assert len(woken) == 2


async def test_a_task_adapter_that_is_gone_from_the_catalog_is_enqueued_once(
    feed: EtagPoller, plane: FakeControlPlane, woken: list[ResourceRef]
) -> None:
    declare(plane, feed, "shop/topic")
    del plane.catalog.adapters["shop/topic"]
    await feed.poll()
    await feed.poll()
    assert woken == [ResourceRef("TaskAdapter", "shop", "topic")]


async def test_a_task_adapter_without_an_etag_is_not_requested(
    feed: EtagPoller, plane: FakeControlPlane
) -> None:
    declare(plane, feed, "shop/topic")
    feed.record("shop/topic", None)  # it is not in the catalog any more
    view = observed_adapter(adapter()).view
    assert view is not None
    feed.record("shop/tone", view.model_copy(update={"etag": ""}))  # of a control plane without ETags
    await feed.poll()
    assert plane.calls() == []


@pytest.mark.parametrize("fault", ["fail", "drop"])
async def test_what_could_not_be_read_is_read_at_the_next_poll(
    feed: EtagPoller, plane: FakeControlPlane, woken: list[ResourceRef], fault: str
) -> None:
    declare(plane, feed, "shop/topic")
    change(plane, "shop/topic")
    if fault == "fail":
        plane.fail(503)
    else:
        plane.drop()
    with pytest.raises(NotReady):
        await feed.poll()
    assert woken == []
    await feed.poll()
    assert len(woken) == 1


async def test_many_are_requested_in_batches_and_less_often(
    feed: EtagPoller, plane: FakeControlPlane
) -> None:
    assert feed.pause_seconds == SHORTEST_SECONDS
    count = 5 * MAX_ETAGS + 1
    declare(plane, feed, *(f"shop/task-{number}" for number in range(count)))
    await feed.poll()
    asked = plane.bodies("POST /adapters/etags", AdapterKeys)
    assert [len(one.keys) for one in asked] == [*[MAX_ETAGS] * 5, 1]
    assert feed.pause_seconds == count / ETAGS_PER_SECOND
