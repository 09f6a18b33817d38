"""Runtimes that come, report, drain, fall silent and return; and where their adapters are meanwhile."""

from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hmi_control_plane import placement
from hmi_control_plane.catalog import runtimes
from hmi_control_plane.catalog.times import now
from hmi_control_plane.storage import Database, Runtime


@pytest.fixture
def with_adapter(cluster: Any) -> Any:
    """A cluster with one runtime and one adapter on it."""
    cluster.runtime("r1")
    cluster.domain()
    cluster.adapter("spam")
    return cluster


def _silence(database: Database, runtime_id: str) -> None:
    """Let a runtime's last heartbeat be long ago, then look for silent runtimes, as the sweeper does."""
    with database.write() as session:
        session.get_one(Runtime, runtime_id).heartbeat_at = now() - timedelta(hours=1)
    with database.write() as session:
        assert runtimes.mark_lost(session, silent_for=timedelta(minutes=1)) == [runtime_id]
    placement.fill(database)


def test_what_a_runtime_says_it_holds_is_believed(with_adapter: Any) -> None:
    with_adapter.beat(ready=["acme/spam@1"])
    assert with_adapter.view("spam")["loadedOn"] == ["r1"]
    with_adapter.beat(gone=["acme/spam@1"])
    assert with_adapter.view("spam")["loadedOn"] == []


def test_a_failed_load_is_told_until_it_succeeds(with_adapter: Any) -> None:
    failure = {"adapter": "acme/spam", "version": 1, "reason": "DigestMismatch", "message": "Train again."}
    with_adapter.beat(failed=[failure])
    assert with_adapter.view("spam")["loadError"] == "DigestMismatch: Train again."
    with_adapter.beat(ready=["acme/spam@1"])
    view = with_adapter.view("spam")
    assert (view["loadError"], view["loadedOn"]) == (None, ["r1"])


def test_what_is_said_of_unknown_adapters_is_ignored(with_adapter: Any) -> None:
    reply = with_adapter.beat(ready=["acme/other@1", "nobody/spam@3"], gone=["acme/other@1"])
    assert reply["known"]


def test_a_key_without_a_version_is_refused(with_adapter: Any, client: TestClient) -> None:
    headers = {"Authorization": "Bearer internal-token-of-the-tests"}
    body = {"incarnation": "one", "ready": ["acme/spam"]}
    response = client.post("/internal/v1/runtimes/r1/heartbeat", json=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "InvalidKey"


def test_a_new_incarnation_voids_what_the_old_one_held(with_adapter: Any) -> None:
    with_adapter.beat(ready=["acme/spam@1"])
    with_adapter.runtime("r1", incarnation="two")
    view = with_adapter.view("spam")
    assert (view["scheduledOn"], view["loadedOn"]) == (["r1"], [])
    assert not with_adapter.beat(incarnation="one", ready=["acme/spam@1"])["known"]
    assert with_adapter.view("spam")["loadedOn"] == []


def test_registering_again_keeps_what_the_same_incarnation_holds(with_adapter: Any) -> None:
    with_adapter.beat(ready=["acme/spam@1"])
    with_adapter.runtime("r1")
    assert with_adapter.view("spam")["loadedOn"] == ["r1"]


def test_an_unknown_runtime_is_told_to_register(cluster: Any, client: TestClient) -> None:
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


def test_a_lost_runtime_that_returns_reads_what_moved_away(with_adapter: Any, database: Database) -> None:
    since = with_adapter.desired("r1")["revision"]
    with_adapter.runtime("r2")
    _silence(database, "r1")
    assert with_adapter.beat("r1")["known"]
    assert with_adapter.desired("r1", since=since)["removedAdapters"] == ["acme/spam"]
    assert with_adapter.view("spam")["scheduledOn"] == ["r2"]


def test_the_only_runtime_finds_its_adapters_where_it_left_them(
    with_adapter: Any, database: Database
) -> None:
    _silence(database, "r1")
    assert with_adapter.view("spam")["scheduledOn"] == []
    with_adapter.runtime("r1", incarnation="two")
    assert with_adapter.view("spam")["scheduledOn"] == ["r1"]
    assert [item["key"] for item in with_adapter.desired("r1")["adapters"]] == ["acme/spam"]


def test_a_draining_runtime_is_replaced_before_it_goes(with_adapter: Any) -> None:
    with_adapter.runtime("r2")
    with_adapter.beat("r1", draining=True)
    assert with_adapter.view("spam")["scheduledOn"] == ["r1", "r2"]
    with_adapter.internal("DELETE", "/runtimes/r1")
    assert with_adapter.view("spam")["scheduledOn"] == ["r2"]
    with_adapter.internal("DELETE", "/runtimes/r1")


def test_replicas_grow_and_shrink(with_adapter: Any) -> None:
    for runtime_id in ("r2", "r3"):
        with_adapter.runtime(runtime_id)
    with_adapter.declare_adapter("spam", replicas=3)
    assert with_adapter.view("spam")["scheduledOn"] == ["r1", "r2", "r3"]
    with_adapter.declare_adapter("spam", replicas=1)
    assert len(with_adapter.view("spam")["scheduledOn"]) == 1


def test_placed_bytes_follow_what_is_placed(with_adapter: Any) -> None:
    def placed() -> int:
        return int(with_adapter.admin("GET", "/runtimes")["items"][0]["placedBytes"])

    domain_bytes, adapter_bytes = 1050, 10
    assert placed() == domain_bytes + adapter_bytes
    with_adapter.adapter("topic")
    assert placed() == domain_bytes + 2 * adapter_bytes
    with_adapter.internal("DELETE", "/adapters/acme/spam")
    with_adapter.internal("DELETE", "/adapters/acme/topic")
    assert placed() == 0


def test_a_forgotten_runtime_leaves_the_list(with_adapter: Any, database: Database) -> None:
    with_adapter.runtime("r2")
    _silence(database, "r1")
    with database.write() as session:
        runtimes.forget_lost(session, silent_for=timedelta(minutes=30))
    assert [item["id"] for item in with_adapter.admin("GET", "/runtimes")["items"]] == ["r2"]
