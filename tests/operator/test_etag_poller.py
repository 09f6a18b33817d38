"""The feed wakes the TaskAdapters whose view is another than at the last look, and nobody else."""

from collections.abc import Sequence
from typing import Any

import pytest
from planning_fixtures import adapter, observed_adapter

from hmi_api.errors import NotReady
from hmi_api.internal.catalog import STAMPS_AT_ONCE
from hmi_operator.etag_poller import SHORTEST_SECONDS, STAMPS_PER_SECOND, EtagPoller
from hmi_operator.ports import ResourceRef

pytestmark = pytest.mark.anyio


class Catalog:
    """Has stamps, and counts the keys of each request."""

    def __init__(self) -> None:
        self.stamps: dict[str, str] = {}
        self.asked: list[int] = []
        self.away = False

    async def adapter_stamps(self, keys: Sequence[str]) -> dict[str, str]:
        if self.away:
            raise NotReady("ControlPlaneUnavailable", "It is away.")
        self.asked.append(len(keys))
        return {key: self.stamps[key] for key in keys if key in self.stamps}


@pytest.fixture
def catalog() -> Any:
    return Catalog()


@pytest.fixture
def woken() -> list[ResourceRef]:
    return []


@pytest.fixture
def feed(catalog: Any, woken: list[ResourceRef]) -> EtagPoller:
    return EtagPoller(catalog, woken.append)


def looked_at(feed: EtagPoller, key: str, stamp: str) -> None:
    view = observed_adapter(adapter()).view
    assert view is not None
    feed.record(key, view.model_copy(update={"stamp": stamp}))


async def test_who_is_as_before_is_left_alone(
    feed: EtagPoller, catalog: Any, woken: list[ResourceRef]
) -> None:
    looked_at(feed, "shop/topic", "a")
    catalog.stamps = {"shop/topic": "a"}
    await feed.poll()
    assert woken == []


async def test_who_has_changed_is_woken_once(
    feed: EtagPoller, catalog: Any, woken: list[ResourceRef]
) -> None:
    for key in ("shop/topic", "shop/tone"):
        looked_at(feed, key, "a")
    catalog.stamps = {"shop/topic": "b", "shop/tone": "a"}
    await feed.poll()
    await feed.poll()
    assert woken == [ResourceRef("TaskAdapter", "shop", "topic")]
    catalog.stamps["shop/topic"] = "c"
    await feed.poll()
    assert len(woken) == 2


async def test_who_is_gone_from_the_catalog_is_woken_once(
    feed: EtagPoller, catalog: Any, woken: list[ResourceRef]
) -> None:
    looked_at(feed, "shop/topic", "a")
    await feed.poll()
    await feed.poll()
    assert woken == [ResourceRef("TaskAdapter", "shop", "topic")]


async def test_who_was_never_seen_in_the_catalog_is_not_asked_for(feed: EtagPoller, catalog: Any) -> None:
    feed.record("shop/topic", None)
    looked_at(feed, "shop/tone", "")  # by a control plane that gives no stamps
    await feed.poll()
    assert catalog.asked == []


async def test_what_was_asked_in_vain_is_asked_again(
    feed: EtagPoller, catalog: Any, woken: list[ResourceRef]
) -> None:
    looked_at(feed, "shop/topic", "a")
    catalog.stamps, catalog.away = {"shop/topic": "b"}, True
    with pytest.raises(NotReady):
        await feed.poll()
    assert woken == []
    catalog.away = False
    await feed.poll()
    assert len(woken) == 1


async def test_many_are_asked_for_in_batches_and_more_rarely(feed: EtagPoller, catalog: Any) -> None:
    assert feed.pause_seconds == SHORTEST_SECONDS
    count = 5 * STAMPS_AT_ONCE + 1
    for number in range(count):
        looked_at(feed, f"shop/task-{number}", "a")
        catalog.stamps[f"shop/task-{number}"] = "a"
    await feed.poll()
    assert catalog.asked == [*[STAMPS_AT_ONCE] * 5, 1]
    assert feed.pause_seconds == count / STAMPS_PER_SECOND
