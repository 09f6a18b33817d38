"""Window counts: what a runtime reports, a run reads and an operator sees."""

from typing import Any

import pytest
from fake_window_counts import window_array, window_dict

from hmi_api.artifacts import ArtifactKind
from hmi_api.internal.client import Refused
from hmi_api.internal.window_counts import DomainWindows, TenantWindows, WindowCountReport

pytestmark = pytest.mark.anyio

HOTEL = "shop/hotel"


@pytest.fixture
async def tenants(plane: Any) -> dict[str, str]:
    """The ids of the Domain's tenant and of three others, as runtimes learn them."""
    await plane.register()
    await plane.published_domain()
    names = ("shop", "bay", "cove", "dune")
    for name in names:
        await plane.published_adapter(f"{name}/topic-{name}")
    state = await plane.client.desired_state("r1", 0, 0.0)
    ids = {one.key.partition("/")[0]: one.tenant_id for one in state.adapters}
    assert set(ids) == set(names)
    return ids


async def report(
    plane: Any, windows: dict[str, dict[int, int]], domain: str = HOTEL, **fields: Any
) -> WindowCountReport:
    current = (await plane.domain(domain)).current
    one = DomainWindows(
        domain=domain,
        version=current.version,
        layers_digest=current.layers.digest,
        lookups=10,
        hits=4,
        tenants=[
            TenantWindows(tenant_id=who, **window_array(some).model_dump()) for who, some in windows.items()
        ],
    )
    return WindowCountReport(incarnation="one", domains=[one], **fields)


async def test_a_run_reads_the_owners_windows_and_those_of_three_others(
    plane: Any, tenants: dict[str, str]
) -> None:
    own, *others = tenants.values()
    sent = {own: {5: 2, 6: 1}, **{who: {7: 3, 8: 1} for who in others[:2]}, others[2]: {7: 1}}
    counted = await report(plane, sent, sequence=1)
    for _ in range(2):  # sent again: counted once
        assert await plane.client.report_window_counts("r1", counted)
    run = await plane.domain_run(spec="2")
    found = plane.trainer(run).window_counts()
    assert list(window_dict(found).items()) == [(7, 7), (5, 2), (6, 1)]
    assert found.layers_digest == (await plane.domain()).current.layers.digest
    assert (found.admitted, found.total) == (3, 10)
    assert found.statistics == (await plane.domain()).lookups
    assert (found.statistics.lookups, found.statistics.misses) == (10, 6)
    assert (found.statistics.hit_rate, found.statistics.miss_rate) == (0.4, 0.6)
    assert list(window_dict(plane.trainer(run).window_counts(most=1))) == [7]


async def test_a_run_reads_what_children_with_the_same_layers_look_up(
    plane: Any, tenants: dict[str, str]
) -> None:
    """What several ask for is the Domain's; what one refreshed child alone asks for is that child's."""
    await plane.published_domain(spec="2", name="layers")
    asked = {"shop/suite": {5: 20, 6: 20}, "shop/lodge": {5: 30, 7: 20}, "shop/own": {5: 1, 8: 20}}
    for number, (key, windows) in enumerate(asked.items(), start=1):
        await plane.declare_domain(key, parent=HOTEL)
        layers = "others" if key == "shop/own" else "layers"
        plane.finish(await plane.domain_run(key), name=layers)
        counted = await report(plane, {tenants["shop"]: windows}, key, sequence=number)
        assert await plane.client.report_window_counts("r1", counted)
    await plane.refresh_run("shop/suite", plot={"refresh": {}})
    found = plane.trainer(await plane.refresh_run()).window_counts()
    assert window_dict(found) == {5: 50, 7: 20}
    assert found.belongs_to_child == (6).to_bytes(8, "little")


async def test_the_tree_shows_levels_and_who_shares_them(plane: Any, tenants: dict[str, str]) -> None:
    parent = (await plane.published_domain(spec="2", name="layers")).current
    for key, layers in (("shop/suite", "layers"), ("shop/own", "others")):
        await plane.declare_domain(key, parent=HOTEL)
        run = await plane.domain_run(key, parent=parent.model_dump(mode="json", by_alias=True))
        made = [plane.publish(run, ArtifactKind.LAYERS, f'"Layers {layers}"'.encode())]
        made.append(plane.publish(run, ArtifactKind.TABLE, f'"Table {key}"'.encode()))
        plane.finish(run, artifacts=made, entries=7)
    counted = await report(plane, {}, "shop/suite", sequence=1)
    assert await plane.client.report_window_counts("r1", counted)
    plane.trainer(await plane.domain_run(spec="3")).window_counts()  # merges what was reported
    top, child = (await plane.domain()).tree, (await plane.domain("shop/suite")).tree
    assert (top.below, top.lookups, child.below, child.lookups) == (1, 10, 0, 0)
    assert [(level.domain, level.entries) for level in child.levels] == [("shop/suite", 7), (HOTEL, 5)]
    assert child.levels[1] == top.levels[0]
    assert top.levels[0].bytes == parent.tables[0].bytes > 0


async def test_a_new_version_begins_without_lookups(plane: Any, tenants: dict[str, str]) -> None:
    assert (await plane.domain()).lookups.hit_rate is None
    await plane.client.report_window_counts("r1", await report(plane, {}, sequence=1))
    await plane.declare_domain(spec="2")
    run = await plane.domain_run(spec="2")
    plane.trainer(run).window_counts()
    assert (await plane.domain()).lookups.lookups == 10
    plane.finish(run)
    assert (await plane.domain()).lookups.lookups == 0


async def test_an_adapters_run_and_one_that_is_over_read_nothing(plane: Any, tenants: dict[str, str]) -> None:
    with pytest.raises(Refused, match="NoDomainRun"):
        plane.trainer(await plane.adapter_run(spec="2")).window_counts()
    run = await plane.domain_run(spec="2")
    plane.finish(run)
    with pytest.raises(Refused, match="RunFinished"):
        plane.trainer(run).window_counts()


async def test_a_control_plane_that_does_not_know_the_call_is_no_error(plane: Any) -> None:
    await plane.published_domain()
    counted = await report(plane, {}, sequence=1)
    assert not await plane.client.report_window_counts("r1/older", counted)
