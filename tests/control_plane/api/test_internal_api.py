"""The internal API as the reconciler, trainers and runtimes use it."""

from typing import Any


def test_a_trained_adapter_is_placed_loaded_and_read(cluster: Any) -> None:
    cluster.runtime()
    cluster.domain()
    view = cluster.adapter("spam")
    assert view["current"]["version"] == 1
    assert view["scheduledOn"] == ["r1"]
    assert view["loadedOn"] == []

    desired = cluster.desired()
    assert desired["full"]
    assert [serving["key"] for serving in desired["adapters"]] == ["acme/spam"]
    assert desired["adapters"][0]["domainVersion"] == 1
    assert [serving["key"] for serving in desired["domains"]] == ["acme/trade"]

    reply = cluster.beat(ready=["acme/spam@1"])
    assert reply == {"known": True, "desiredRevision": desired["revision"]}
    assert cluster.view("spam")["loadedOn"] == ["r1"]


def test_an_adapter_without_a_runtime_is_placed_when_one_registers(cluster: Any) -> None:
    cluster.domain()
    assert cluster.adapter("spam")["scheduledOn"] == []
    cluster.runtime()
    assert cluster.view("spam")["scheduledOn"] == ["r1"]


def test_the_desired_state_is_incremental(cluster: Any) -> None:
    cluster.runtime()
    cluster.domain()
    cluster.adapter("one")
    first = cluster.desired()
    cluster.adapter("two")
    second = cluster.desired(since=first["revision"])
    assert not second["full"]
    assert [serving["key"] for serving in second["adapters"]] == ["acme/two"]
    assert second["domains"] == []
    cluster.internal("DELETE", "/adapters/acme/one")
    third = cluster.desired(since=second["revision"])
    assert third["removedAdapters"] == ["acme/one"]
    assert third["adapters"] == []
    nothing = cluster.desired(since=third["revision"])
    assert nothing["revision"] == third["revision"]
    assert not nothing["full"]
    assert nothing["removedAdapters"] == []


def test_a_runtime_behind_deleted_removals_reads_everything(cluster: Any) -> None:
    cluster.runtime()
    cluster.domain()
    cluster.adapter("one")
    before = cluster.desired()["revision"]
    cluster.adapter("two")
    cluster.internal("DELETE", "/adapters/acme/one")
    after = cluster.desired(since=before)["revision"]
    cluster.desired(since=after)
    again = cluster.desired(since=before)
    assert again["full"]
    assert [serving["key"] for serving in again["adapters"]] == ["acme/two"]


def test_a_revision_that_is_too_new_reads_everything(cluster: Any) -> None:
    cluster.runtime()
    assert cluster.desired(since=2**60)["full"]


def test_an_adapter_declared_again_is_not_a_removal(cluster: Any) -> None:
    cluster.runtime()
    cluster.domain()
    cluster.adapter("one")
    since = cluster.desired()["revision"]
    cluster.internal("DELETE", "/adapters/acme/one")
    cluster.adapter("one")
    news = cluster.desired(since=since)
    assert news["removedAdapters"] == []
    assert [serving["key"] for serving in news["adapters"]] == ["acme/one"]


def test_a_new_version_replaces_the_old(cluster: Any) -> None:
    cluster.runtime()
    cluster.domain()
    cluster.adapter("spam")
    since = cluster.desired()["revision"]
    cluster.retrain("spam", spec="2")
    news = cluster.desired(since=since)
    assert [(serving["key"], serving["version"]) for serving in news["adapters"]] == [("acme/spam", 2)]
    assert cluster.view("spam")["current"]["version"] == 2


def test_a_version_that_fails_its_gate_never_serves(cluster: Any) -> None:
    cluster.runtime()
    cluster.domain()
    cluster.adapter("spam")
    since = cluster.desired()["revision"]
    run = cluster.retrain("spam", spec="2", gatePassed=False, gateMessage="accuracy 0.4 < 0.8")
    assert run["state"] == "Succeeded"
    assert cluster.view("spam")["current"]["version"] == 1
    assert cluster.desired(since=since)["adapters"] == []


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


def test_the_same_request_gives_the_same_run(cluster: Any) -> None:
    cluster.declare_domain("trade")
    run = cluster.domain_run("trade")
    assert cluster.domain_run("trade")["id"] == run["id"]
    assert cluster.domain_run("trade", attempt=1)["id"] != run["id"]


def test_a_run_reports_progress_until_its_end(cluster: Any) -> None:
    cluster.declare_domain("trade")
    run = cluster.domain_run("trade")
    assert run["state"] == "Pending"
    progress = {"stage": "training", "step": 3, "total": 10, "metrics": {"loss": 0.5}}
    assert cluster.internal("POST", f"/runs/{run['id']}/progress", progress)["state"] == "Running"
    assert cluster.internal("GET", f"/runs/{run['id']}")["progress"]["step"] == 3
    failure = {"reason": "EmptyCorpus", "message": "There are no rows."}
    failed = cluster.internal("POST", f"/runs/{run['id']}/fail", failure)
    assert failed["state"] == "Failed"
    other = {"reason": "Other", "message": "Second thoughts."}
    assert cluster.internal("POST", f"/runs/{run['id']}/fail", other)["failure"]["reason"] == "EmptyCorpus"
    assert cluster.internal("POST", f"/runs/{run['id']}/progress", progress)["state"] == "Failed"


def test_a_run_of_an_older_spec_does_not_replace_the_newer_version(cluster: Any) -> None:
    cluster.domain()
    cluster.declare_adapter("spam")
    late = cluster.adapter_run("spam", spec="1")
    newer = cluster.retrain("spam", spec="2")
    cluster.complete_adapter(late)
    assert cluster.view("spam")["current"]["specDigest"] == newer["specDigest"]


def test_an_adapter_stays_on_the_layers_it_was_trained_on(cluster: Any) -> None:
    cluster.runtime()
    cluster.domain()
    cluster.adapter("old")
    cluster.publish_domain("trade", spec="2")
    cluster.adapter("new")
    serving = {item["key"]: item["domainVersion"] for item in cluster.desired()["adapters"]}
    assert serving == {"acme/old": 1, "acme/new": 2}
    versions = [item["version"]["version"] for item in cluster.desired()["domains"]]
    assert versions == [1, 2]


def test_a_newer_table_of_the_same_layers_replaces_the_older(cluster: Any) -> None:
    cluster.runtime()
    cluster.declare_domain("trade")
    cluster.publish_domain("trade", layers="same")
    cluster.adapter("spam")
    since = cluster.desired()["revision"]
    cluster.publish_domain("trade", spec="2", layers="same")
    news = cluster.desired(since=since)
    assert [(item["key"], item["domainVersion"]) for item in news["adapters"]] == [("acme/spam", 2)]
    assert [item["version"]["version"] for item in news["domains"]] == [2]


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


def test_a_child_domain_reads_its_own_table_first(cluster: Any) -> None:
    parent = cluster.domain("root")["current"]
    cluster.declare_domain("leaf")
    run = cluster.domain_run("leaf", spec="other")
    # A run with a parent, as the reconciler makes it.
    body = {
        "uid": run["uid"],
        "tenant": "acme",
        "specDigest": run["specDigest"],
        "attempt": 1,
        "spec": run["spec"] | {"parent": parent},
    }
    run = cluster.internal("POST", "/runs", body)
    own = {"kind": "Table", "uri": "table/leaf", "digest": "sha256:" + "1" * 64, "bytes": 5}
    result = {"artifacts": [own], "baseDigest": parent["baseDigest"]}
    cluster.internal("POST", f"/runs/{run['id']}/complete", result)
    current = cluster.internal("GET", "/domains/acme/leaf")["current"]
    assert current["layers"] == parent["layers"]
    assert current["tables"] == [own, *parent["tables"]]
