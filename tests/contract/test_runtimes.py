"""Runtimes: what they should load, what they report, and what the operator then reads of it."""

import asyncio
from typing import Any

import pytest

from hmi_api.internal.catalog import EarlierVersion, LoadError, Revocation
from hmi_api.internal.client import Refused
from hmi_api.internal.runtimes import Heartbeat

pytestmark = pytest.mark.anyio

HOTEL, TOPIC = "shop/hotel", "shop/topic"
BROKEN = LoadError(reason="ArtifactDamaged", message="A digest differs: fetch it again.")


@pytest.fixture
async def placed(plane: Any) -> Any:
    """One runtime, and a TaskAdapter that is placed on it."""
    await plane.register()
    await plane.published_domain()
    await plane.published_adapter()
    return plane


async def desired(plane: Any, since: int = 0, *, name: str = "r1", wait: float = 0.0) -> Any:
    state = await plane.client.desired_state(name, since, wait)
    assert state is not None
    return state


def versions(state: Any) -> dict[str, int]:
    return {one.key: one.version for one in state.adapters}


async def test_a_published_adapter_is_placed_with_its_domain(placed: Any) -> None:
    view, domain = await placed.adapter(), await placed.domain()
    assert (view.scheduled_on, view.loaded_on) == (["r1"], [])
    state = await desired(placed)
    assert state.full
    (serving,) = state.adapters
    assert (serving.key, serving.version, serving.labels) == (TOPIC, 1, ["no", "yes"])
    assert (serving.artifact, serving.domain) == (view.current.artifact, HOTEL)
    assert serving.tenant_id
    assert [(one.key, one.version) for one in state.domains] == [(HOTEL, domain.current)]
    assert serving.domain_version == domain.current.version


async def test_adapters_are_scheduled_when_the_first_runtime_registers(plane: Any) -> None:
    await plane.published_domain()
    view = await plane.published_adapter()
    assert (view.scheduled_on, view.runtimes) == ([], 0)
    await plane.register()
    view = await plane.adapter()
    assert (view.scheduled_on, view.runtimes) == (["r1"], None)


async def test_as_many_runtimes_as_replicas(placed: Any) -> None:
    await placed.register("r2")
    assert (await placed.adapter()).scheduled_on == ["r1"]
    await placed.declare_adapter(replicas=2)
    assert (await placed.adapter()).scheduled_on == ["r1", "r2"]
    await placed.declare_adapter(replicas=3)
    assert (await placed.adapter()).scheduled_on == ["r1", "r2"]
    await placed.declare_adapter(replicas=1)
    assert len((await placed.adapter()).scheduled_on) == 1


async def test_the_current_revision_has_no_changes(placed: Any) -> None:
    revision = (await desired(placed)).revision
    state = await desired(placed, revision)
    assert (state.revision, state.full) == (revision, False)
    assert (state.adapters, state.domains, state.removed_adapters) == ([], [], [])
    assert (await placed.beat()).desired_revision == revision


async def test_only_changes_after_a_revision(placed: Any) -> None:
    first = (await desired(placed)).revision
    await placed.published_adapter("shop/tone")
    second = await desired(placed, first)
    assert (versions(second), second.domains, second.full) == ({"shop/tone": 1}, [], False)
    await placed.published_adapter(spec="2")
    third = await desired(placed, second.revision)
    assert versions(third) == {TOPIC: 2}
    await placed.client.delete("TaskAdapter", "shop/tone")
    fourth = await desired(placed, third.revision)
    assert (fourth.removed_adapters, fourth.adapters) == (["shop/tone"], [])
    assert versions(await desired(placed)) == {TOPIC: 2}
    # A runtime that missed all of it reads each change, or the full state.
    behind = await desired(placed, first)
    assert versions(behind) == {TOPIC: 2}
    assert behind.full or behind.removed_adapters == ["shop/tone"]


async def test_a_revision_older_than_acknowledged_removals_gets_the_full_state(placed: Any) -> None:
    await placed.published_adapter("shop/tone")
    before = (await desired(placed)).revision
    await placed.client.delete("TaskAdapter", "shop/tone")
    after = (await desired(placed, before)).revision
    await desired(placed, after)
    again = await desired(placed, before)
    assert (again.full, versions(again), again.removed_adapters) == (True, {TOPIC: 1}, [])


async def test_an_unknown_revision_gets_the_full_state(placed: Any) -> None:
    assert (await desired(placed, 2**60)).full


async def test_an_adapter_that_comes_back_under_its_name_is_no_removal(placed: Any) -> None:
    since = (await desired(placed)).revision
    await placed.client.delete("TaskAdapter", TOPIC)
    await placed.declare_adapter()
    placed.finish(await placed.adapter_run(), name="again")
    state = await desired(placed, since)
    assert (versions(state), state.removed_adapters) == ({TOPIC: 1}, [])


async def test_a_long_poll_ends_with_the_next_change(placed: Any) -> None:
    revision = (await desired(placed)).revision
    async with asyncio.timeout(20):
        waiting = asyncio.create_task(desired(placed, revision, wait=30.0))
        await asyncio.sleep(0.05)
        await placed.client.delete("TaskAdapter", TOPIC)
        state = await waiting
        while not state.removed_adapters:  # a poll may end early, without a change
            state = await desired(placed, state.revision, wait=30.0)
    assert state.removed_adapters == [TOPIC]


async def test_an_adapter_stays_on_the_layers_that_it_was_trained_on(placed: Any) -> None:
    await placed.published_domain(spec="2")
    await placed.published_adapter("shop/tone")
    state = await desired(placed)
    assert {one.key: one.domain_version for one in state.adapters} == {TOPIC: 1, "shop/tone": 2}
    assert [one.version.version for one in state.domains] == [1, 2]


async def test_a_newer_domain_version_of_the_same_layers_takes_over(placed: Any) -> None:
    run = await placed.client.run((await placed.domain_run()).id)
    since = (await desired(placed)).revision
    await placed.declare_domain(spec="2")
    placed.finish(await placed.domain_run(spec="2"), artifacts=run.result.artifacts)
    state = await desired(placed, since)
    assert [one.version.version for one in state.domains] == [2]
    assert [(one.key, one.domain_version) for one in state.adapters] == [(TOPIC, 2)]


# --- reports ----------------------------------------------------------------------------------------


async def test_the_view_has_what_a_runtime_reports(placed: Any) -> None:
    reply = await placed.beat(failed={f"{TOPIC}@1": BROKEN})
    assert (reply.known, reply.only_here) == (True, 0)
    view = await placed.adapter()
    assert (view.load_error, view.loaded_on) == (BROKEN, [])
    await placed.beat(ready=[f"{TOPIC}@1"])
    view = await placed.adapter()
    assert (view.load_error, view.loaded_on) == (None, ["r1"])
    await placed.beat()
    assert (await placed.adapter()).loaded_on == ["r1"], "heartbeats report changes alone"
    await placed.beat(gone=[f"{TOPIC}@1"])
    assert (await placed.adapter()).loaded_on == []


async def test_a_version_that_failed_to_take_another_table_serves_with_the_reason(placed: Any) -> None:
    version = f"{TOPIC}@1"
    late = LoadError(reason="TableBudgetFull", message="It does not fit.")
    await placed.beat(ready=[version], failed={version: late}, serves=True)
    view = await placed.adapter()
    assert (view.load_error, view.loaded_on) == (late, ["r1"])
    await placed.beat(ready=[version])
    view = await placed.adapter()
    assert (view.load_error, view.loaded_on) == (None, ["r1"])


async def test_the_earlier_version_is_named_until_the_current_one_is_loaded(placed: Any) -> None:
    await placed.beat(ready=[f"{TOPIC}@1"])
    await placed.published_adapter(spec="2")
    view = await placed.adapter()
    assert (view.loaded_on, view.earlier) == ([], [EarlierVersion(runtime="r1", version=1)])
    await placed.beat(ready=[f"{TOPIC}@2"])
    view = await placed.adapter()
    assert (view.loaded_on, view.earlier) == (["r1"], [])


async def test_a_failure_of_an_earlier_version_is_none_of_the_current_one(placed: Any) -> None:
    await placed.beat(failed={f"{TOPIC}@1": BROKEN})
    await placed.published_adapter(spec="2")
    assert (await placed.adapter()).load_error is None


async def test_the_etag_changes_with_placement_version_and_reports(plane: Any) -> None:
    seen: list[str] = []

    async def changed() -> bool:
        etag = (await plane.adapter()).etag
        assert await plane.client.adapter_etags([TOPIC]) == {TOPIC: etag}
        seen.append(etag)
        return seen.count(etag) == 1

    await plane.published_domain()
    await plane.declare_adapter()
    assert await changed()
    plane.finish(await plane.adapter_run())
    assert await changed()
    await plane.register()
    assert await changed(), "it was placed"
    for report in (
        {"failed": {f"{TOPIC}@1": BROKEN}},
        {"failed": {f"{TOPIC}@1": BROKEN.model_copy(update={"message": "Again."})}},
        {"ready": [f"{TOPIC}@1"]},
    ):
        await plane.beat(**report)
        assert await changed(), report
    await plane.beat()
    assert not await changed()
    await plane.published_adapter("shop/tone")
    assert not await changed(), "another one was published"
    await plane.published_adapter(spec="2")
    assert await changed()
    await plane.declare_adapter(spec="2", uid="new")
    assert await changed()
    await plane.client.deregister_runtime("r1")
    assert await changed()


async def test_a_new_incarnation_has_loaded_nothing(placed: Any) -> None:
    await placed.beat(ready=[f"{TOPIC}@1"])
    await placed.register()
    assert (await placed.adapter()).loaded_on == ["r1"], "the same incarnation"
    await placed.register(incarnation="two")
    view = await placed.adapter()
    assert (view.scheduled_on, view.loaded_on) == (["r1"], [])
    assert not (await placed.beat(ready=[f"{TOPIC}@1"])).known
    assert (await placed.adapter()).loaded_on == []
    assert (await placed.beat(incarnation="two")).known


async def test_a_report_of_an_adapter_that_is_gone_is_ignored(placed: Any) -> None:
    await placed.beat(ready=[f"{TOPIC}@1", "shop/none@1"])
    await placed.client.delete("TaskAdapter", TOPIC)
    assert (await placed.beat(gone=[f"{TOPIC}@1", "shop/none@1"])).known
    await placed.published_adapter()
    assert (await placed.adapter()).loaded_on == [], "it is another one"


async def test_an_unregistered_runtime_is_unknown_until_it_registers(placed: Any) -> None:
    since = (await desired(placed)).revision
    for _ in range(2):
        await placed.client.deregister_runtime("r1")
    assert not (await placed.beat()).known
    assert await placed.client.desired_state("r1", 0, 0.0) is None
    assert (await placed.adapter()).scheduled_on == []
    await placed.register()
    state = await desired(placed, since)
    assert (state.full, versions(state)) == (True, {TOPIC: 1})


async def test_a_draining_runtime_waits_for_adapters_that_only_it_has_loaded(placed: Any) -> None:
    await placed.beat(ready=[f"{TOPIC}@1"])
    assert (await placed.beat(draining=True)).only_here == 0, "there is no other"
    await placed.register("r2")
    assert (await placed.adapter()).scheduled_on == ["r1", "r2"]
    assert (await placed.beat(draining=True)).only_here == 1
    await placed.beat("r2", ready=[f"{TOPIC}@1"])
    assert (await placed.beat(draining=True)).only_here == 0
    await placed.client.deregister_runtime("r1")
    view = await placed.adapter()
    assert (view.scheduled_on, view.loaded_on) == (["r2"], ["r2"])


async def test_a_withdrawn_adapter_is_removed_from_its_runtimes(placed: Any) -> None:
    since = (await desired(placed)).revision
    await placed.client.revoke(TOPIC, Revocation(reason="NotShared", message="m", withdraw=True))
    assert (await desired(placed, since)).removed_adapters == [TOPIC]
    assert (await placed.adapter()).scheduled_on == []


async def test_a_value_out_of_range_is_refused(plane: Any) -> None:
    await plane.register()
    beat = Heartbeat.model_construct(incarnation="one", queue_depth=-1)
    with pytest.raises(Refused) as caught:
        await plane.client.heartbeat("r1", beat)
    assert (caught.value.status, caught.value.reason) == (422, "InvalidField")
