"""The poller enqueues the TaskAdapters whose ETag in the catalog has changed, and no others."""

import pytest
from fake_control_plane import FakeControlPlane
from fake_versions import StoredAdapter
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
def enqueued() -> list[ResourceRef]:
    return []


@pytest.fixture
def poller(plane: FakeControlPlane, enqueued: list[ResourceRef]) -> EtagPoller:
    return EtagPoller(plane.client(), enqueued.append)


def declare(plane: FakeControlPlane, poller: EtagPoller, *keys: str) -> None:
    """Have TaskAdapters in the catalog whose views were read."""
    for key in keys:
        record = observed_adapter(adapter()).view.record
        plane.catalog.adapters[key] = StoredAdapter(record.model_copy(update={"uid": f"uid of {key}"}))
        poller.record(key, plane.catalog.adapter_view(key))


def change(plane: FakeControlPlane, key: str) -> None:
    """Publish another version of a TaskAdapter."""
    row = plane.catalog.adapters[key]
    row.current = adapter_version("d", version=row.current.version + 1 if row.current else 1)


async def test_a_task_adapter_with_the_same_etag_is_not_enqueued(
    poller: EtagPoller, plane: FakeControlPlane, enqueued: list[ResourceRef]
) -> None:
    declare(plane, poller, "shop/topic")
    await poller.poll()
    assert plane.calls() == ["POST /adapters/etags"]
    assert enqueued == []


async def test_a_task_adapter_with_another_etag_is_enqueued_once(
    poller: EtagPoller, plane: FakeControlPlane, enqueued: list[ResourceRef]
) -> None:
    declare(plane, poller, "shop/topic", "shop/tone")
    change(plane, "shop/topic")
    await poller.poll()
    await poller.poll()
    assert enqueued == [ResourceRef("TaskAdapter", "shop", "topic")]
    change(plane, "shop/topic")
    await poller.poll()
    assert len(enqueued) == 2


async def test_a_task_adapter_that_is_gone_from_the_catalog_is_enqueued_once(
    poller: EtagPoller, plane: FakeControlPlane, enqueued: list[ResourceRef]
) -> None:
    declare(plane, poller, "shop/topic")
    del plane.catalog.adapters["shop/topic"]
    await poller.poll()
    await poller.poll()
    assert enqueued == [ResourceRef("TaskAdapter", "shop", "topic")]


async def test_a_task_adapter_without_an_etag_is_not_requested(
    poller: EtagPoller, plane: FakeControlPlane
) -> None:
    declare(plane, poller, "shop/topic")
    poller.record("shop/topic", None)  # it is not in the catalog any more
    view = observed_adapter(adapter()).view
    assert view is not None
    poller.record("shop/tone", view.model_copy(update={"etag": ""}))  # of a control plane without ETags
    await poller.poll()
    assert plane.calls() == []


@pytest.mark.parametrize("fault", ["fail", "drop"])
async def test_a_failed_poll_loses_no_change(
    poller: EtagPoller, plane: FakeControlPlane, enqueued: list[ResourceRef], fault: str
) -> None:
    declare(plane, poller, "shop/topic")
    change(plane, "shop/topic")
    if fault == "fail":
        plane.fail(503)
    else:
        plane.drop()
    with pytest.raises(NotReady):
        await poller.poll()
    assert enqueued == []
    await poller.poll()
    assert len(enqueued) == 1


async def test_many_are_requested_in_batches_and_less_often(
    poller: EtagPoller, plane: FakeControlPlane
) -> None:
    assert poller.pause_seconds == SHORTEST_SECONDS
    count = 5 * MAX_ETAGS + 1
    declare(plane, poller, *(f"shop/task-{number}" for number in range(count)))
    await poller.poll()
    polls = plane.bodies("POST /adapters/etags", AdapterKeys)
    assert [len(one.keys) for one in polls] == [*[MAX_ETAGS] * 5, 1]
    assert poller.pause_seconds == count / ETAGS_PER_SECOND
