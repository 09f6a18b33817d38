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


def test_a_version_records_what_training_read(cluster: Any) -> None:
    read = {"use": "train", "uri": "pvc://rows/a", "rows": 3, "fileCount": 1, "files": ["a.jsonl"]}
    read |= {"labels": {"no": 1, "yes": 2}, "labelCount": 2, "skipped": [], "skippedCount": 0}
    cluster.domain()
    cluster.declare_adapter("sides")
    cluster.complete_adapter(cluster.adapter_run("sides"), data=[read])
    assert [found | read for found in cluster.view("sides")["current"]["data"]] == [read | {"heldOut": None}]


def test_completing_a_run_again_changes_nothing(cluster: Any) -> None:
    cluster.runtime()
    cluster.domain()
    cluster.declare_adapter("spam")
    run = cluster.adapter_run("spam")
    first = cluster.complete_adapter(run)
    revision = cluster.desired()["revision"]
    assert cluster.complete_adapter(run) == first
    assert cluster.desired()["revision"] == revision
    assert cluster.view("spam")["current"]["version"] == 1
    items = cluster.admin("GET", "/artifacts")["items"]
    assert [item["refcount"] for item in items if item["artifact"]["kind"] == "Adapter"] == [1]


def test_all_versions_with_the_same_layers_are_replaced_by_the_newest_table(cluster: Any) -> None:
    cluster.runtime()
    cluster.publish_domain("trade", layers="same")
    cluster.adapter("first")
    late = cluster.domain_run("trade", spec="1", attempt=1)
    cluster.publish_domain("trade", spec="2", layers="other")
    # Late, so it does not become current; but adapters trained on its layers can use it from now on.
    cluster.complete_domain(late, layers="same", table="late")
    cluster.declare_adapter("second")
    run = cluster.adapter_run("second")
    layers = cluster.desired()["domains"][0]["version"]["layers"]["digest"]
    cluster.complete_adapter(run, layersDigest=layers)
    versions = [item["version"]["version"] for item in cluster.desired()["domains"]]
    assert versions == [1, 3]
    cluster.publish_domain("trade", spec="4", layers="same")
    assert [item["version"]["version"] for item in cluster.desired()["domains"]] == [4]
    assert {item["domainVersion"] for item in cluster.desired()["adapters"]} == {4}
