"""Rows of objects that were deleted and created again while the operator did not run."""

from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from hmi_control_plane.catalog.clusters import REGISTRATION_EXPIRES_AFTER
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import Cluster

TOKEN = {"Authorization": "Bearer internal-token-of-the-tests"}


def refusal(client: TestClient, method: str, path: str, body: Any = None) -> tuple[int, str]:
    answer = client.request(method, f"/internal/v1{path}", json=body, headers=TOKEN)
    return answer.status_code, answer.json()["error"]["code"]


def test_recreated_objects_take_over_their_rows_and_keep_serving(cluster: Any) -> None:
    cluster.runtime()
    cluster.domain()
    cluster.adapter("spam")
    cluster.beat(ready=["acme/spam@1"])
    before, domain = cluster.view("spam"), cluster.internal("GET", "/domains/acme/trade")
    revision = cluster.desired()["revision"]

    cluster.declare_domain("trade", uid="dom-2")
    cluster.declare_adapter("spam", uid="ta-2")

    after = cluster.view("spam")
    assert after["record"]["uid"] == "ta-2"
    assert (after["current"], after["loadedOn"]) == (before["current"], ["r1"])
    reborn = cluster.internal("GET", "/domains/acme/trade")
    assert (reborn["record"]["uid"], reborn["current"]) == ("dom-2", domain["current"])
    assert cluster.desired()["revision"] == revision, "no runtime hears of it"


def test_runs_are_taken_over_with_their_resource(cluster: Any) -> None:
    cluster.declare_domain("trade")
    run = cluster.domain_run("trade")
    cluster.declare_domain("trade", uid="dom-2")
    assert cluster.domain_run("trade", uid="dom-2")["id"] == run["id"]
    cluster.complete_domain(run, layers="l", table="t")
    assert cluster.internal("GET", "/domains/acme/trade")["current"]["version"] == 1


@pytest.mark.parametrize("change", [{"domain": "acme/other"}, {"taskType": "TokenClassification"}])
def test_a_changed_domain_or_task_type_makes_a_new_adapter(cluster: Any, change: dict[str, str]) -> None:
    cluster.domain()
    cluster.publish_domain("other")
    cluster.adapter("spam")
    cluster.declare_adapter("spam", uid="ta-2", **change)
    assert cluster.view("spam")["current"] is None


def test_another_base_model_makes_a_new_domain(cluster: Any) -> None:
    cluster.domain()
    record = cluster.internal("GET", "/domains/acme/trade")["record"] | {
        "uid": "dom-2",
        "baseUri": "wheel://c",
    }
    cluster.internal("PUT", "/domains/acme/trade", record)
    assert cluster.internal("GET", "/domains/acme/trade").get("current") is None


def test_deletion_with_a_uid_deletes_only_the_row_of_that_object(cluster: Any) -> None:
    cluster.domain()
    cluster.adapter("spam")
    cluster.internal("DELETE", "/adapters/acme/spam", params={"uid": "another"})
    assert cluster.view("spam")["current"]["version"] == 1
    cluster.internal("DELETE", "/adapters/acme/spam", params={"uid": "ta-acme-spam"})
    cluster.internal("DELETE", "/domains/acme/trade", params={"uid": "another"})
    listed = cluster.internal("GET", "/domains")
    assert listed == {"items": [{"key": "acme/trade", "uid": "dom-acme-trade"}], "nextCursor": None}
    cluster.internal("DELETE", "/domains/acme/trade", params={"uid": "dom-acme-trade"})
    assert cluster.internal("GET", "/domains")["items"] == []
    assert cluster.internal("GET", "/adapters")["items"] == []


def test_the_adapters_of_a_domain_are_listed(cluster: Any) -> None:
    cluster.domain()
    cluster.publish_domain("other")
    cluster.declare_adapter("spam")
    cluster.declare_adapter("ham", domain="acme/other")
    listed = cluster.internal("GET", "/adapters", params={"domain": "acme/other"})
    assert listed["items"] == [{"key": "acme/ham", "uid": "ta-acme-ham"}]
    assert [item["key"] for item in cluster.internal("GET", "/adapters")["items"]] == [
        "acme/spam",
        "acme/ham",
    ]


def test_a_catalog_belongs_to_one_cluster_at_a_time(
    cluster: Any, client: TestClient, database: Database
) -> None:
    assert cluster.internal("PUT", "/cluster", {"uid": "first"})["inherited"] is False
    assert refusal(client, "PUT", "/cluster", {"uid": "second"}) == (409, "OtherCluster")
    cluster.declare_domain("trade")
    with database.write() as session:
        seen_at = session.get_one(Cluster, "first").seen_at
        session.execute(
            update(Cluster).values(seen_at=seen_at - REGISTRATION_EXPIRES_AFTER - timedelta(seconds=1))
        )
    taken = cluster.internal("PUT", "/cluster", {"uid": "second"})
    assert taken["inherited"] is True
    assert 0 <= taken["knownSeconds"] < 60
    assert refusal(client, "PUT", "/cluster", {"uid": "first"}) == (409, "OtherCluster")
    assert cluster.internal("PUT", "/cluster", {"uid": "second"})["knownSeconds"] >= taken["knownSeconds"]
