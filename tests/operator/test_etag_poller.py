"""The feed wakes the TaskAdapters whose view is another than at the last look, and nobody else."""

from collections.abc import Sequence
from typing import Any

import pytest
from planning_fixtures import adapter, observed_adapter

from hmi_api.errors import NotReady
from hmi_api.internal.catalog import MAX_ETAGS
from hmi_operator.etag_poller import ETAGS_PER_SECOND, SHORTEST_SECONDS, EtagPoller
from hmi_operator.ports import ResourceRef

pytestmark = pytest.mark.anyio


class Catalog:
    """Has ETags, and counts the keys of each request."""

    def __init__(self) -> None:
        self.etags: dict[str, str] = {}
        self.asked: list[int] = []
        self.away = False

    async def adapter_etags(self, keys: Sequence[str]) -> dict[str, str]:
        if self.away:
            raise NotReady("ControlPlaneUnavailable", "It is away.")
        self.asked.append(len(keys))
        return {key: self.etags[key] for key in keys if key in self.etags}


@pytest.fixture
def catalog() -> Any:
    return Catalog()


@pytest.fixture
def woken() -> list[ResourceRef]:
    return []


@pytest.fixture
def feed(catalog: Any, woken: list[ResourceRef]) -> EtagPoller:
    return EtagPoller(catalog, woken.append)


def looked_at(feed: EtagPoller, key: str, etag: str) -> None:
    view = observed_adapter(adapter()).view
    assert view is not None
    feed.record(key, view.model_copy(update={"etag": etag}))


async def test_who_is_as_before_is_left_alone(
    feed: EtagPoller, catalog: Any, woken: list[ResourceRef]
) -> None:
    looked_at(feed, "shop/topic", "a")
    catalog.etags = {"shop/topic": "a"}
    await feed.poll()
    assert woken == []


async def test_who_has_changed_is_woken_once(
    feed: EtagPoller, catalog: Any, woken: list[ResourceRef]
) -> None:
    for key in ("shop/topic", "shop/tone"):
        looked_at(feed, key, "a")
    catalog.etags = {"shop/topic": "b", "shop/tone": "a"}
    await feed.poll()
    await feed.poll()
    assert woken == [ResourceRef("TaskAdapter", "shop", "topic")]
    catalog.etags["shop/topic"] = "c"
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
    looked_at(feed, "shop/tone", "")  # by a control plane that gives no ETags
    await feed.poll()
    assert catalog.asked == []


async def test_what_was_asked_in_vain_is_asked_again(
    feed: EtagPoller, catalog: Any, woken: list[ResourceRef]
) -> None:
    looked_at(feed, "shop/topic", "a")
    catalog.etags, catalog.away = {"shop/topic": "b"}, True
    with pytest.raises(NotReady):
        await feed.poll()
    assert woken == []
    catalog.away = False
    await feed.poll()
    assert len(woken) == 1


async def test_many_are_asked_for_in_batches_and_more_rarely(feed: EtagPoller, catalog: Any) -> None:
    assert feed.pause_seconds == SHORTEST_SECONDS
    count = 5 * MAX_ETAGS + 1
    for number in range(count):
        looked_at(feed, f"shop/task-{number}", "a")
        catalog.etags[f"shop/task-{number}"] = "a"
    await feed.poll()
    assert catalog.asked == [*[MAX_ETAGS] * 5, 1]
    assert feed.pause_seconds == count / ETAGS_PER_SECOND
