"""A cached key of a deleted tenant never reaches a new tenant of that name."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hmi_control_plane.catalog import tenants
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.settings import Settings

PATHS = [
    ("POST", "/classify", {"model": "spam", "input": "yes"}),
    ("POST", "/classify", {"models": ["spam", "acme/spam"], "input": "yes"}),
    (
        "POST",
        "/v2/models/spam/infer",
        {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["yes"]}]},
    ),
    ("GET", "/v2/models/spam", None),
    ("GET", "/v2/models/spam/ready", None),
    ("GET", "/v1/models/spam", None),
]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A gateway that caches keys for a long time."""
    return settings.model_copy(update={"key_cache_seconds": 3600.0})


@pytest.fixture
def elsewhere(settings: Settings) -> Iterator[Database]:
    """The catalog as opened by another process, whose changes do not reach this process's cache of keys."""
    opened = Database(settings.database_url)
    yield opened
    opened.close()


def delete_acme(cluster: Any, elsewhere: Database) -> None:
    """Delete the tenant acme with all it has."""
    for name in ("spam", "topic", "names"):
        cluster.internal("DELETE", f"/adapters/acme/{name}")
    cluster.internal("DELETE", "/domains/acme/trade")
    with elsewhere.write() as session:
        tenants.delete_tenant(session, "acme")


def make_new_acme(client: TestClient, cluster: Any) -> dict[str, str]:
    """Create another tenant acme with a model spam that is ready; return the headers of its key."""
    cluster.domain()
    cluster.adapter("spam")
    cluster.beat(ready=["acme/spam@1"])
    key = cluster.admin("POST", "/tenants/acme/keys", {"name": "new"})["key"]
    return {"Authorization": f"Bearer {key}"}


def test_a_key_of_a_deleted_tenant_reaches_no_model_of_a_new_one_with_its_name(
    client: TestClient, cluster: Any, elsewhere: Database, runtime: Any, acme: Any
) -> None:
    assert acme.classify(model="spam", input="yes").status_code == 200
    delete_acme(cluster, elsewhere)
    new = make_new_acme(client, cluster)
    with elsewhere.read() as session:
        new_id = tenants.get_tenant(session, "acme").id
    runtime.tenant_ids["acme/spam"] = new_id
    # The route in memory is the old tenant's, too: the runtime refuses, and the route is read again.
    assert acme.classify(model="spam", input="yes").status_code == 503
    before = len(runtime.requests)
    for method, path, body in PATHS:
        assert acme.call(method, path, json=body).status_code == 404, path
    assert acme.call("GET", "/v1/models").json()["data"] == []
    assert len(runtime.requests) == before
    for method, path, body in PATHS:
        assert client.request(method, path, json=body, headers=new).status_code == 200, path
    assert {request.tenant_id for request in runtime.requests[before:]} == {new_id}


def test_a_new_tenants_key_does_not_use_the_route_of_the_deleted_tenant(
    client: TestClient, cluster: Any, elsewhere: Database, runtime: Any, acme: Any
) -> None:
    assert acme.classify(model="spam", input="yes").status_code == 200
    delete_acme(cluster, elsewhere)
    cluster.domain()
    key = cluster.admin("POST", "/tenants/acme/keys", {"name": "new"})["key"]
    headers = {"Authorization": f"Bearer {key}"}
    answer = client.post("/classify", json={"model": "spam", "input": "yes"}, headers=headers)
    assert answer.status_code == 404


def test_the_runtime_gets_the_tenant_id_of_an_adapter(
    cluster: Any, elsewhere: Database, runtime: Any, acme: Any
) -> None:
    with elsewhere.read() as session:
        tenant_id = tenants.get_tenant(session, "acme").id
    assert {one["tenantId"] for one in cluster.desired()["adapters"]} == {tenant_id}
