"""Refreshed tables: what a refresh publishes, what is kept, and a rollback."""

from typing import Any

import pytest

from hmi_api.internal.client import Refused
from hmi_api.internal.refreshes import RefreshResult, RestoreTable
from hmi_api.internal.runs import RunState

pytestmark = pytest.mark.anyio

HOTEL = "shop/hotel"


async def tables(plane: Any) -> list[tuple[int, str]]:
    """The kept versions and their tables, the current one first."""
    found = await plane.client.refreshes(HOTEL)
    return [(one.version, one.table) for one in found.tables]


async def restore(plane: Any, version: int, uid: str = "uid-hotel") -> int | None:
    answer: int | None = await plane.client.restore_table(HOTEL, RestoreTable(uid=uid, version=version))
    return answer


async def test_a_refresh_publishes_a_table_and_keeps_layers_and_spec(plane: Any) -> None:
    before = (await plane.published_domain()).current
    run = await plane.refresh_run(refresh={"request": "now"})
    assert plane.finish_refresh(run).state is RunState.SUCCEEDED
    after = (await plane.domain()).current
    assert after.version == 2
    assert after.tables != before.tables
    kept = {"version", "tables", "entries", "coverage"}
    assert after.model_dump(exclude=kept) == before.model_dump(exclude=kept)
    assert (after.entries, after.coverage) == (6, 0.7)
    found = await plane.client.refreshes(HOTEL)
    assert [one.version for one in found.tables] == [2, 1]
    change = found.tables[0].change
    assert (change.cause, change.windows_in, change.windows_out) == ("Schedule", 3, 2)
    assert (change.hit_rate_before, change.restored) == (0.4, None)
    assert found.tables[1].change is None
    last = found.last_run
    assert (last.run_id, last.version, last.attempt, last.request) == (run.id, 1, 0, "now")


async def test_adapters_move_to_the_refreshed_table(plane: Any) -> None:
    await plane.register()
    await plane.published_domain()
    adapter = await plane.published_adapter()
    plane.finish_refresh(await plane.refresh_run())
    state = await plane.client.desired_state("r1", 0, 0.0)
    assert [one.domain_version for one in state.adapters] == [2]
    assert [one.version.version for one in state.domains] == [2]
    assert (await plane.adapter()).current == adapter.current


async def test_a_refresh_that_changed_nothing_publishes_nothing(plane: Any) -> None:
    await plane.published_domain()
    run = await plane.refresh_run()
    nothing = RefreshResult(windows_in=0, windows_out=0)
    assert plane.finish_refresh(run, artifacts=[], refresh=nothing).state is RunState.SUCCEEDED
    assert (await plane.domain()).current.version == 1
    again = await plane.refresh_run(attempt=1)
    assert (await plane.client.refreshes(HOTEL)).last_run.run_id == again.id != run.id


async def test_a_refresh_of_an_earlier_version_is_superseded(plane: Any) -> None:
    await plane.published_domain()
    late = await plane.refresh_run()
    await plane.declare_domain(spec="2")
    plane.finish(await plane.domain_run(spec="2"))
    ended = plane.finish_refresh(late)
    assert (ended.state, ended.failure.reason) == (RunState.FAILED, "Superseded")
    assert (await plane.domain()).current.spec_digest == "2"
    assert [version for version, _ in await tables(plane)] == [2]


async def test_a_refresh_must_name_its_layers(plane: Any) -> None:
    await plane.published_domain()
    run = await plane.refresh_run()
    for wrong in ({"layers_digest": "sha256:0"}, {"refresh": None}):
        with pytest.raises(Refused, match="IncompleteResult"):
            plane.finish_refresh(run, **wrong)


async def test_the_last_tables_are_kept_as_the_history_limit_says(plane: Any) -> None:
    await plane.published_domain()
    for _ in range(4):
        plane.finish_refresh(await plane.refresh_run(plot={"refresh": {"historyLimit": 3}}))
    assert [version for version, _ in await tables(plane)] == [5, 4, 3]
    assert await restore(plane, 2) is None
    for _ in range(6):
        plane.finish_refresh(await plane.refresh_run())
    assert [version for version, _ in await tables(plane)] == [11, 10, 9, 8, 7]


async def test_an_earlier_table_is_put_back_under_the_next_number(plane: Any) -> None:
    await plane.register()
    await plane.published_domain()
    await plane.published_adapter()
    plane.finish_refresh(await plane.refresh_run())
    before = dict(await tables(plane))
    for _ in range(2):  # the same request again changes nothing
        assert await restore(plane, 1) == 3
    assert await tables(plane) == [(3, before[1]), (2, before[2]), (1, before[1])]
    assert (await plane.client.refreshes(HOTEL)).tables[0].change.restored == 1
    state = await plane.client.desired_state("r1", 0, 0.0)
    assert [one.domain_version for one in state.adapters] == [3]
    assert await restore(plane, 2) == 4
    assert (await tables(plane))[0] == (4, before[2])


async def test_only_a_kept_table_of_this_object_is_put_back(plane: Any) -> None:
    assert await plane.client.refreshes(HOTEL) is None
    await plane.published_domain()
    plane.finish_refresh(await plane.refresh_run())
    assert await restore(plane, 7) is None
    assert await restore(plane, 1, uid="another") is None
    await plane.declare_domain(spec="2")
    plane.finish(await plane.domain_run(spec="2"))
    assert await restore(plane, 1) is None  # of another spec
    assert await restore(plane, 3) == 3


async def test_a_refresh_reads_the_current_versions_artifacts(plane: Any) -> None:
    current = (await plane.published_domain()).current
    run = await plane.refresh_run()
    for ref in (current.layers, current.tables[0]):
        assert plane.trainer(run).read_file(ref, "manifest.json")
