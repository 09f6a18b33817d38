"""TaskAdapters that may not use their Domain any more, in the catalog and at the gateway."""

from typing import Any

from fastapi.testclient import TestClient

from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import Artifact

TOKEN = {"Authorization": "Bearer internal-token-of-the-tests"}
REVOKED = {"reason": "NotShared", "message": "Domain acme/trade is not shared with namespace bolt any more."}


def guest(cluster: Any) -> None:
    """A TaskAdapter of bolt on acme's Domain, served by r1."""
    cluster.runtime()
    cluster.domain()
    cluster.adapter("spam", tenant="bolt")
    cluster.beat(ready=["bolt/spam@1"])


def revoke(cluster: Any, *, withdraw: bool) -> Any:
    cluster.internal("PUT", "/adapters/bolt/spam/revocation", REVOKED | {"withdraw": withdraw})
    return cluster.view("spam", tenant="bolt")


def test_the_first_revocation_starts_the_grace_time_and_the_adapter_stays_served(cluster: Any) -> None:
    guest(cluster)
    first = revoke(cluster, withdraw=False)
    assert first["revokedAt"] is not None
    again = revoke(cluster, withdraw=False)
    assert (again["revokedAt"], again["loadedOn"]) == (first["revokedAt"], ["r1"])
    cluster.internal("DELETE", "/adapters/bolt/spam/revocation")
    restored = cluster.view("spam", tenant="bolt")
    assert (restored["revokedAt"], restored["current"]["version"]) == (None, 1)


def test_a_withdrawn_adapter_is_unloaded_and_requests_get_the_reason(
    cluster: Any, client: TestClient, database: Database
) -> None:
    guest(cluster)
    since = cluster.desired()["revision"]
    revoke(cluster, withdraw=False)
    view = revoke(cluster, withdraw=True)
    assert (view["withdrawn"], view["current"], view["scheduledOn"]) == (True, None, [])
    assert cluster.desired(since=since)["removedAdapters"] == ["bolt/spam"]
    cluster.beat(gone=["bolt/spam@1"])
    key = cluster.admin("POST", "/tenants/bolt/keys", {"name": "k"})["key"]
    body = {"model": "spam", "input": ["text"]}
    answer = client.post("/classify", json=body, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 409, answer.text
    error = answer.json()["error"]
    assert error["code"] == "NotShared"
    assert REVOKED["message"] in error["message"]
    with database.read() as session:
        adapters = session.query(Artifact).filter(Artifact.kind == "Adapter").all()
        assert [row.refcount for row in adapters] == [0]


def test_the_domain_of_a_withdrawn_adapter_can_be_deleted_and_the_reason_stays(
    cluster: Any, client: TestClient
) -> None:
    guest(cluster)
    in_use = client.delete("/internal/v1/domains/acme/trade", headers=TOKEN)
    assert in_use.json()["error"]["code"] == "DomainInUse"
    revoke(cluster, withdraw=True)
    cluster.internal("DELETE", "/domains/acme/trade")
    assert cluster.view("spam", tenant="bolt")["withdrawn"]


def test_a_run_that_completes_after_the_withdrawal_publishes_nothing(cluster: Any) -> None:
    guest(cluster)
    cluster.declare_adapter("spam", tenant="bolt", specDigest="sha256:2")
    run = cluster.adapter_run("spam", tenant="bolt", spec="2")
    revoke(cluster, withdraw=True)
    ended = cluster.complete_adapter(run)
    assert ended["state"] == "Failed"
    assert ended["failure"]["reason"] == "NotShared"
    assert cluster.view("spam", tenant="bolt")["current"] is None
    cluster.internal("DELETE", "/adapters/bolt/spam/revocation")
    cluster.complete_adapter(cluster.adapter_run("spam", tenant="bolt", spec="2", attempt=1))
    assert cluster.view("spam", tenant="bolt")["current"]["version"] == 1


def test_revoking_an_unknown_adapter_is_404(client: TestClient) -> None:
    for method in ("PUT", "DELETE"):
        answer = client.request(method, "/internal/v1/adapters/a/b/revocation", json=REVOKED, headers=TOKEN)
        assert answer.status_code == 404
