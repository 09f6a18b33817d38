"""A key of a deleted tenant, which is believed for a while, never reaches the next tenant of that name."""

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
    """A gateway that believes keys for long."""
    return settings.model_copy(update={"key_cache_seconds": 3600.0})


@pytest.fixture
def elsewhere(settings: Settings) -> Iterator[Database]:
    """The catalog as another process has it: what is done there, this one's cache of keys does not hear."""
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


def make_acme_anew(client: TestClient, cluster: Any) -> dict[str, str]:
    """Make another tenant acme with a model spam that is ready; return the headers of its key."""
    cluster.domain()
    cluster.adapter("spam")
    cluster.beat(ready=["acme/spam@1"])
    key = cluster.admin("POST", "/tenants/acme/keys", {"name": "new"})["key"]
    return {"Authorization": f"Bearer {key}"}


def test_an_old_key_reaches_no_model_of_the_next_tenant(
    client: TestClient, cluster: Any, elsewhere: Database, runtime: Any, acme: Any
) -> None:
    assert acme.classify(model="spam", input="yes").status_code == 200
    delete_acme(cluster, elsewhere)
    new = make_acme_anew(client, cluster)
    with elsewhere.read() as session:
        new_id = tenants.get_tenant(session, "acme").id
    runtime.tenant_ids["acme/spam"] = new_id
    # The route in memory is the old tenant's, too: the runtime refuses, and the route is read again.
    assert acme.classify(model="spam", input="yes").status_code == 503
    asked = len(runtime.requests)
    for method, path, body in PATHS:
        assert acme.call(method, path, json=body).status_code == 404, path
    assert acme.call("GET", "/v1/models").json()["data"] == []
    assert len(runtime.requests) == asked
    for method, path, body in PATHS:
        assert client.request(method, path, json=body, headers=new).status_code == 200, path
    assert {request.tenant_id for request in runtime.requests[asked:]} == {new_id}


def test_a_new_key_does_not_use_the_route_of_the_tenant_before(
    client: TestClient, cluster: Any, elsewhere: Database, runtime: Any, acme: Any
) -> None:
    assert acme.classify(model="spam", input="yes").status_code == 200
    delete_acme(cluster, elsewhere)
    cluster.domain()
    key = cluster.admin("POST", "/tenants/acme/keys", {"name": "new"})["key"]
    headers = {"Authorization": f"Bearer {key}"}
    answer = client.post("/classify", json={"model": "spam", "input": "yes"}, headers=headers)
    assert answer.status_code == 404


def test_the_runtime_is_told_whose_an_adapter_is(
    cluster: Any, elsewhere: Database, runtime: Any, acme: Any
) -> None:
    with elsewhere.read() as session:
        tenant_id = tenants.get_tenant(session, "acme").id
    assert {one["tenantId"] for one in cluster.desired()["adapters"]} == {tenant_id}
