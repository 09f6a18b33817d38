"""Rules of the catalog: refused changes, deletions, and what is kept."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from hmi_control_plane.catalog.artifacts import ArtifactGarbageCollector
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import Artifact, UsageEventRow

_HEADERS = {"Authorization": "Bearer internal-token-of-the-tests"}


def _refusal(client: TestClient, method: str, path: str, body: Any = None) -> tuple[int, str]:
    response = client.request(method, f"/internal/v1{path}", json=body, headers=_HEADERS)
    return response.status_code, response.json()["error"]["code"]


def test_a_name_is_unique_within_a_tenant(cluster: Any, client: TestClient) -> None:
    cluster.declare_adapter("spam", namespace="first")
    record = cluster.adapter_record("spam", uid="other")
    assert _refusal(client, "PUT", "/adapters/second/spam", record) == (409, "NameTaken")
    cluster.internal("DELETE", "/adapters/first/spam")
    cluster.internal("PUT", "/adapters/second/spam", record)


def test_two_tenants_may_use_the_same_name(cluster: Any) -> None:
    cluster.declare_adapter("spam", tenant="acme")
    cluster.declare_adapter("spam", tenant="globex")
    assert cluster.view("spam", tenant="globex")["record"]["tenant"] == "globex"


def test_a_resource_does_not_change_its_tenant(cluster: Any, client: TestClient) -> None:
    cluster.declare_adapter("spam")
    cluster.internal("PUT", "/tenants/globex")
    record = cluster.adapter_record("spam") | {"tenant": "globex"}
    assert _refusal(client, "PUT", "/adapters/acme/spam", record) == (409, "TenantChanged")
    said = client.put("/internal/v1/adapters/acme/spam", json=record, headers=_HEADERS).json()["error"][
        "message"
    ]
    assert said.startswith(
        "TaskAdapter acme/spam belongs to tenant acme, but namespace acme belongs to tenant globex now"
    )
    assert "label hmi.dev/tenant" in said


def test_an_unknown_tenant_is_refused(cluster: Any, client: TestClient) -> None:
    record = cluster.adapter_record("spam", tenant="nobody")
    assert _refusal(client, "PUT", "/adapters/nobody/spam", record) == (404, "UnknownTenant")


def test_a_domain_in_use_is_not_deleted(cluster: Any, client: TestClient) -> None:
    cluster.domain()
    cluster.adapter("spam")
    assert _refusal(client, "DELETE", "/domains/acme/trade") == (409, "DomainInUse")
    cluster.internal("DELETE", "/adapters/acme/spam")
    cluster.internal("DELETE", "/domains/acme/trade")
    cluster.internal("DELETE", "/domains/acme/trade")
    assert _refusal(client, "GET", "/domains/acme/trade") == (404, "UnknownDomain")


def test_deleting_resources_removes_artifacts_and_keeps_usage(
    cluster: Any, database: Database, tmp_path: Path
) -> None:
    root = tmp_path / "artifacts"
    cluster.domain()
    current = cluster.adapter("spam")["current"]
    folder = root / current["artifact"]["uri"]
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    cluster.internal("DELETE", "/adapters/acme/spam")
    assert ArtifactGarbageCollector(database, str(root)).collect() == 1
    assert not folder.exists()
    assert root.exists()
    kinds = {item["artifact"]["kind"] for item in cluster.admin("GET", "/artifacts")["items"]}
    assert kinds == {"Layers", "Table"}
    with database.read() as session:
        (event,) = session.scalars(select(UsageEventRow)).all()
    assert (event.tenant, event.adapter, event.meter, event.quantity) == (
        "acme",
        "spam",
        "training_seconds",
        2,
    )


def test_each_artifact_is_deleted_in_its_own_transaction(
    cluster: Any, database: Database, tmp_path: Path
) -> None:
    left = []

    class Watched(ArtifactGarbageCollector):
        def remove_folder(self, uri: str) -> None:
            with database.read() as session:
                left.append(len(session.scalars(select(Artifact)).all()))

    cluster.publish_domain("trade")
    cluster.internal("DELETE", "/domains/acme/trade")
    assert Watched(database, str(tmp_path)).collect() == 2
    assert left == [2, 1], "earlier deletions are committed while the store is slow"


@pytest.mark.parametrize("uri", ["../outside", "a/../../outside", "", "/"])
def test_nothing_outside_the_store_is_ever_deleted(database: Database, tmp_path: Path, uri: str) -> None:
    root = tmp_path / "store"
    outside = tmp_path / "outside"
    for folder in (root, outside):
        folder.mkdir()
        (folder / "kept").write_text("kept")
    eraser = ArtifactGarbageCollector(database, str(root))
    eraser.remove_folder(uri)
    assert (outside / "kept").exists()
    assert (root / "kept").exists()


def test_a_shared_artifact_is_kept_while_one_version_needs_it(cluster: Any, database: Database) -> None:
    cluster.publish_domain("one", layers="shared")
    cluster.publish_domain("two", layers="shared")
    cluster.internal("DELETE", "/domains/acme/one")
    ArtifactGarbageCollector(database, "memory://store").collect()
    layers = [
        item for item in cluster.admin("GET", "/artifacts")["items"] if item["artifact"]["kind"] == "Layers"
    ]
    assert [item["refcount"] for item in layers] == [1]


def test_a_run_of_a_deleted_resource_fails_so_that_its_trainer_stops(cluster: Any) -> None:
    cluster.domain()
    cluster.declare_adapter("spam")
    run = cluster.adapter_run("spam")
    cluster.internal("DELETE", "/adapters/acme/spam")
    progress = {"stage": "training", "step": 1, "total": 2}
    run_view = cluster.internal("POST", f"/runs/{run['id']}/progress", progress)
    assert (run_view["state"], run_view["failure"]["reason"]) == ("Failed", "ResourceDeleted")
    assert cluster.complete_adapter(run)["state"] == "Failed"


def test_a_result_that_lacks_its_artifact_is_refused(cluster: Any, client: TestClient) -> None:
    cluster.domain()
    cluster.declare_adapter("spam")
    run = cluster.adapter_run("spam")
    body = {"artifacts": [], "baseDigest": "sha256:0"}
    assert _refusal(client, "POST", f"/runs/{run['id']}/complete", body) == (400, "IncompleteResult")
    assert cluster.internal("GET", f"/runs/{run['id']}")["state"] == "Pending"


def test_a_succeeded_run_cannot_fail(cluster: Any, client: TestClient) -> None:
    cluster.domain()
    cluster.declare_adapter("spam")
    run = cluster.complete_adapter(cluster.adapter_run("spam"))
    body = {"reason": "Late", "message": "Too late."}
    assert _refusal(client, "POST", f"/runs/{run['id']}/fail", body) == (409, "RunFinished")


def test_a_version_records_what_training_read(cluster: Any) -> None:
    read = {"use": "train", "uri": "pvc://rows/a", "rows": 3, "fileCount": 1, "files": ["a.jsonl"]}
    read |= {"labels": {"no": 1, "yes": 2}, "labelCount": 2, "skipped": [], "skippedCount": 0}
    cluster.domain()
    cluster.declare_adapter("sides")
    cluster.complete_adapter(cluster.adapter_run("sides"), data=[read])
    assert [found | read for found in cluster.view("sides")["current"]["data"]] == [read | {"heldOut": None}]
