"""Runtimes that register, report, drain, are lost and return, and the placements of their adapters."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hmi_api.names import AdapterKey
from hmi_control_plane.artifact_files import ArtifactFiles
from hmi_control_plane.catalog import placement, runtimes
from hmi_control_plane.catalog.artifacts import ArtifactGarbageCollector
from hmi_control_plane.catalog.database import Database, utc_now
from hmi_control_plane.catalog.tables import Runtime
from hmi_control_plane.gateway.routes import read_routes
from hmi_control_plane.sweeper import Sweeper


@pytest.fixture
def with_adapter(cluster: Any) -> Any:
    """A cluster with one runtime and one adapter on it."""
    cluster.runtime("r1")
    cluster.domain()
    cluster.adapter("spam")
    return cluster


def _silence(database: Database, runtime_id: str) -> None:
    """Make a runtime's last heartbeat old, then mark silent runtimes as lost, as the sweeper does."""
    with database.write() as session:
        session.get_one(Runtime, runtime_id).heartbeat_at = utc_now() - timedelta(hours=1)
    with database.write() as session:
        assert runtimes.mark_lost(session, silent_for=timedelta(minutes=1)) == [runtime_id]
    placement.place_missing_replicas(database)


def test_an_adapter_is_loaded_where_a_runtime_reports_it(with_adapter: Any) -> None:
    with_adapter.beat(ready=["acme/spam@1"])
    assert with_adapter.view("spam")["loadedOn"] == ["r1"]
    with_adapter.beat(gone=["acme/spam@1"])
    assert with_adapter.view("spam")["loadedOn"] == []


def test_an_earlier_version_is_listed_until_the_runtime_serves_the_current_one(
    with_adapter: Any, database: Database
) -> None:
    with_adapter.runtime("r2")
    with_adapter.declare_adapter("spam", replicas=2)
    for runtime_id in ("r1", "r2"):
        with_adapter.beat(runtime_id, ready=["acme/spam@1"])
    assert with_adapter.view("spam")["earlier"] == []
    with_adapter.retrain("spam", spec="2", replicas=2)

    def serving() -> tuple[list[str], list[str]]:
        view = with_adapter.view("spam")
        return view["loadedOn"], [f"{one['runtime']}@{one['version']}" for one in view["earlier"]]

    assert serving() == ([], ["r1@1", "r2@1"])
    with_adapter.beat("r1", ready=["acme/spam@2"])  # version 1 is unloaded a moment later
    assert serving() == (["r1"], ["r2@1"])
    failure = {"adapter": "acme/spam", "version": 2, "reason": "DigestMismatch", "message": "Train again."}
    with_adapter.beat("r2", failed=[failure])
    assert serving() == (["r1"], ["r2@1"])
    assert with_adapter.view("spam")["loadError"] == {"reason": "DigestMismatch", "message": "Train again."}
    _silence(database, "r2")
    assert serving() == (["r1"], [])


@pytest.mark.parametrize("way", ["fell silent", "was drained", "restarted"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_view_lists_no_lost_runtime(way: str, version: int, with_adapter: Any, database: Database) -> None:
    with_adapter.beat("r1", ready=["acme/spam@1"])
    if version == 2:  # then what r1 serves is an earlier version
        with_adapter.retrain("spam", spec="2")
    view = with_adapter.view("spam")
    assert view["loadedOn"] + [one["runtime"] for one in view["earlier"]] == ["r1"]
    match way:
        case "fell silent":
            _silence(database, "r1")
        case "was drained":
            with_adapter.internal("DELETE", "/runtimes/r1")
        case "restarted":
            with_adapter.runtime("r1", incarnation="two")
    view = with_adapter.view("spam")
    assert (view["loadedOn"], view["earlier"]) == ([], [])


def test_a_failed_load_is_reported_until_it_succeeds(with_adapter: Any) -> None:
    failure = {"adapter": "acme/spam", "version": 1, "reason": "DigestMismatch", "message": "Train again."}
    with_adapter.beat(failed=[failure])
    assert with_adapter.view("spam")["loadError"] == {"reason": "DigestMismatch", "message": "Train again."}
    with_adapter.beat(ready=["acme/spam@1"])
    view = with_adapter.view("spam")
    assert (view["loadError"], view["loadedOn"]) == (None, ["r1"])


def test_reports_about_unknown_adapters_are_ignored(with_adapter: Any) -> None:
    reply = with_adapter.beat(ready=["acme/other@1", "nobody/spam@3"], gone=["acme/other@1"])
    assert reply["known"]


def test_a_new_incarnation_deletes_the_reports_of_the_old_one(with_adapter: Any) -> None:
    with_adapter.beat(ready=["acme/spam@1"])
    with_adapter.runtime("r1", incarnation="two")
    view = with_adapter.view("spam")
    assert (view["scheduledOn"], view["loadedOn"]) == (["r1"], [])
    assert not with_adapter.beat(incarnation="one", ready=["acme/spam@1"])["known"]
    assert with_adapter.view("spam")["loadedOn"] == []


def test_registering_the_same_incarnation_again_keeps_its_reports(with_adapter: Any) -> None:
    with_adapter.beat(ready=["acme/spam@1"])
    with_adapter.runtime("r1")
    assert with_adapter.view("spam")["loadedOn"] == ["r1"]


def test_an_unknown_runtime_must_register(cluster: Any, client: TestClient) -> None:
    assert not cluster.beat("ghost")["known"]
    headers = {"Authorization": "Bearer internal-token-of-the-tests"}
    response = client.get("/internal/v1/runtimes/ghost/desired", headers=headers)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "UnknownRuntime"


def test_the_adapters_of_a_lost_runtime_move(with_adapter: Any, database: Database) -> None:
    with_adapter.runtime("r2")
    with_adapter.beat("r1", ready=["acme/spam@1"])
    _silence(database, "r1")
    view = with_adapter.view("spam")
    assert (view["scheduledOn"], view["loadedOn"]) == (["r2"], [])
    assert [item["key"] for item in with_adapter.desired("r2")["adapters"]] == ["acme/spam"]


def test_a_returning_runtime_reads_which_adapters_were_moved(with_adapter: Any, database: Database) -> None:
    since = with_adapter.desired("r1")["revision"]
    with_adapter.runtime("r2")
    _silence(database, "r1")
    assert with_adapter.beat("r1")["known"]
    assert with_adapter.desired("r1", since=since)["removedAdapters"] == ["acme/spam"]
    assert with_adapter.view("spam")["scheduledOn"] == ["r2"]


def test_adapters_of_the_only_runtime_are_scheduled_again_when_it_returns(
    with_adapter: Any, database: Database
) -> None:
    _silence(database, "r1")
    assert with_adapter.view("spam")["scheduledOn"] == []
    with_adapter.runtime("r1", incarnation="two")
    assert with_adapter.view("spam")["scheduledOn"] == ["r1"]
    assert [item["key"] for item in with_adapter.desired("r1")["adapters"]] == ["acme/spam"]


def test_a_draining_runtime_is_replaced_before_it_stops(with_adapter: Any) -> None:
    with_adapter.runtime("r2")
    with_adapter.beat("r1", draining=True)
    assert with_adapter.view("spam")["scheduledOn"] == ["r1", "r2"]
    with_adapter.internal("DELETE", "/runtimes/r1")
    assert with_adapter.view("spam")["scheduledOn"] == ["r2"]
    with_adapter.internal("DELETE", "/runtimes/r1")


def test_the_number_of_replicas_can_grow_and_shrink(with_adapter: Any) -> None:
    for runtime_id in ("r2", "r3"):
        with_adapter.runtime(runtime_id)
    with_adapter.declare_adapter("spam", replicas=3)
    assert with_adapter.view("spam")["scheduledOn"] == ["r1", "r2", "r3"]
    with_adapter.declare_adapter("spam", replicas=1)
    assert len(with_adapter.view("spam")["scheduledOn"]) == 1


def test_placed_bytes_are_the_sum_of_the_placements(with_adapter: Any) -> None:
    def placed() -> int:
        return int(with_adapter.admin("GET", "/runtimes")["items"][0]["placedBytes"])

    domain_bytes, adapter_bytes = 1050, 10
    assert placed() == domain_bytes + adapter_bytes
    with_adapter.adapter("topic")
    assert placed() == domain_bytes + 2 * adapter_bytes
    with_adapter.internal("DELETE", "/adapters/acme/spam")
    with_adapter.internal("DELETE", "/adapters/acme/topic")
    assert placed() == 0


def test_layers_and_tables_are_counted_against_their_own_budget(cluster: Any) -> None:
    cluster.runtime("r1", host=100, tables=500)  # the domain has 1,050 bytes
    cluster.runtime("r2", host=100, tables=2_000)
    cluster.domain()
    cluster.adapter("spam")
    assert cluster.view("spam")["scheduledOn"] == ["r2"]
    listed = {item["id"]: item for item in cluster.admin("GET", "/runtimes")["items"]}
    assert (listed["r2"]["placedBytes"], listed["r2"]["placedTableBytes"]) == (1060, 1050)
    assert (listed["r2"]["hostCapacityBytes"], listed["r2"]["tableCapacityBytes"]) == (100, 2000)
    cluster.internal("DELETE", "/runtimes/r2")
    assert cluster.view("spam")["scheduledOn"] == ["r1"], "a table may be larger than the budget"


def test_a_runtime_that_gives_one_capacity_is_full_when_adapters_and_tables_fill_it(cluster: Any) -> None:
    cluster.runtime("r1", capacity=1_055)
    cluster.runtime("r2", capacity=1_000_000)
    cluster.domain()
    cluster.adapter("spam")
    assert cluster.view("spam")["scheduledOn"] == ["r2"]
    listed = {item["id"]: item for item in cluster.admin("GET", "/runtimes")["items"]}
    assert listed["r2"].get("tableCapacityBytes") is None


def test_a_lost_runtime_without_placements_is_deleted(with_adapter: Any, database: Database) -> None:
    with_adapter.runtime("r2")
    _silence(database, "r1")
    with database.write() as session:
        runtimes.delete_lost(session, silent_for=timedelta(minutes=30))
    assert [item["id"] for item in with_adapter.admin("GET", "/runtimes")["items"]] == ["r2"]


def test_a_draining_runtime_gets_the_number_of_adapters_that_only_it_serves(with_adapter: Any) -> None:
    with_adapter.beat("r1", ready=["acme/spam@1"])
    assert "onlyHere" not in with_adapter.beat("r1", draining=True)  # no other runtime could serve it
    with_adapter.runtime("r2")
    assert with_adapter.beat("r1", draining=True)["onlyHere"] == 1
    assert with_adapter.view("spam")["scheduledOn"] == ["r1", "r2"]
    with_adapter.beat("r2", ready=["acme/spam@1"])
    assert "onlyHere" not in with_adapter.beat("r1", draining=True)


def test_requests_go_to_the_new_address_of_a_restarted_runtime(with_adapter: Any, database: Database) -> None:
    with_adapter.beat("r1", ready=["acme/spam@1"])
    with_adapter.runtime("r1", incarnation="two", url="http://10.1.2.3:8081")
    assert with_adapter.admin("GET", "/runtimes")["items"][0]["url"] == "http://10.1.2.3:8081"
    with_adapter.beat("r1", incarnation="two", ready=["acme/spam@1"])
    with database.read() as session:
        (route,) = read_routes(session, [AdapterKey("acme/spam")]).values()
    assert [runtime.url for runtime in route.runtimes] == ["http://10.1.2.3:8081"]


def test_an_outage_loses_no_runtime(with_adapter: Any, database: Database, tmp_path: Path) -> None:
    """After an outage, a runtime that sends a heartbeat within the time limit is not lost."""
    seconds = 0.0
    sweeper = Sweeper(
        database,
        ArtifactGarbageCollector(database, str(tmp_path)),
        ArtifactFiles(str(tmp_path)),
        lost_after=timedelta(seconds=15),
        forgotten_after=timedelta(hours=1),
        every_seconds=2.0,
        notify=lambda: None,
        clock=lambda: seconds,
    )

    def sweep_for(length: float) -> None:
        nonlocal seconds
        for _ in range(round(length / 2)):
            seconds += 2.0
            sweeper.sweep_fleet()

    def silent_for(length: float) -> None:
        with database.write() as session:
            session.get_one(Runtime, "r1").heartbeat_at = utc_now() - timedelta(seconds=length)

    with_adapter.beat("r1", ready=["acme/spam@1"])
    sweep_for(20.0)
    assert with_adapter.view("spam")["loadedOn"] == ["r1"]
    seconds += 20.0  # the database was away
    silent_for(20.0)
    sweep_for(14.0)
    assert with_adapter.view("spam")["loadedOn"] == ["r1"]
    sweep_for(4.0)
    assert with_adapter.view("spam")["loadedOn"] == []
