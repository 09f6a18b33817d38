"""The admin API: keys, tenants, lists, and the credentials that it needs."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

_ADMIN = {"Authorization": "Bearer admin-key-of-the-tests"}
_INTERNAL = {"Authorization": "Bearer internal-token-of-the-tests"}


def _as_tenant(client: TestClient, key: str) -> int:
    return client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code


def test_a_key_is_shown_once_and_works_until_it_is_revoked(cluster: Any, client: TestClient) -> None:
    cluster.admin("POST", "/tenants", {"name": "acme"})
    made = cluster.admin("POST", "/tenants/acme/keys", {"name": "laptop"})
    assert _as_tenant(client, made["key"]) == 200
    (listed,) = cluster.admin("GET", "/tenants/acme/keys")["items"]
    assert listed["lastUsedOn"] is not None
    assert "key" not in listed
    assert made["key"] not in str(listed)
    cluster.admin("DELETE", f"/tenants/acme/keys/{made['id']}")
    assert _as_tenant(client, made["key"]) == 401
    cluster.admin("DELETE", f"/tenants/acme/keys/{made['id']}")


@pytest.mark.parametrize("change", [lambda key: key[:-1] + "x", lambda key: key[4:], lambda _key: "hmi__"])
def test_a_wrong_key_is_refused(cluster: Any, client: TestClient, change: Any) -> None:
    cluster.admin("POST", "/tenants", {"name": "acme"})
    made = cluster.admin("POST", "/tenants/acme/keys", {})
    response = client.get("/v1/models", headers={"Authorization": f"Bearer {change(made['key'])}"})
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "InvalidApiKey"


def test_each_api_has_its_own_credential(cluster: Any, client: TestClient) -> None:
    cluster.admin("POST", "/tenants", {"name": "acme"})
    tenant = {"Authorization": f"Bearer {cluster.admin('POST', '/tenants/acme/keys', {})['key']}"}
    for path, right in (
        ("/admin/v1/tenants", _ADMIN),
        ("/internal/v1/runs/0", _INTERNAL),
        ("/v1/models", tenant),
    ):
        for headers in (_ADMIN, _INTERNAL, tenant, {}):
            expected = headers == right
            assert (client.get(path, headers=headers).status_code != 401) is expected, (path, headers)


def test_tenants_are_created_changed_and_deleted(cluster: Any, client: TestClient) -> None:
    made = cluster.admin("POST", "/tenants", {"name": "acme", "displayName": "Acme"})
    assert made["displayName"] == "Acme"
    refused = client.post("/admin/v1/tenants", json={"name": "Acme Corp"}, headers=_ADMIN)
    assert "name: a name has at most 63 lower-case letters" in refused.json()["error"]["message"]
    again = client.post("/admin/v1/tenants", json={"name": "acme"}, headers=_ADMIN)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "TenantExists")
    cluster.admin("PATCH", "/tenants/acme", {"displayName": "Acme Corp"})
    assert cluster.admin("GET", "/tenants/acme")["displayName"] == "Acme Corp"
    cluster.declare_adapter("spam")
    used = client.delete("/admin/v1/tenants/acme", headers=_ADMIN)
    assert (used.status_code, used.json()["error"]["code"]) == (409, "TenantInUse")
    cluster.internal("DELETE", "/adapters/acme/spam")
    key = cluster.admin("POST", "/tenants/acme/keys", {})["key"]
    cluster.admin("DELETE", "/tenants/acme")
    assert _as_tenant(client, key) == 401
    assert client.get("/admin/v1/tenants/acme", headers=_ADMIN).status_code == 404


def test_lists_are_read_page_by_page(cluster: Any) -> None:
    names = [f"tenant-{index}" for index in range(5)]
    for name in names:
        cluster.admin("POST", "/tenants", {"name": name})
    read, cursor = [], None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = cluster.admin("GET", "/tenants", params=params)
        read += [item["name"] for item in page["items"]]
        cursor = page.get("nextCursor")
        if cursor is None:
            break
    assert read == names


def test_the_lists_show_the_catalog(cluster: Any) -> None:
    cluster.runtime()
    cluster.domain()
    cluster.adapter("spam")
    cluster.adapter("spam", tenant="globex")

    def items(path: str, **params: str) -> list[Any]:
        return list(cluster.admin("GET", path, params=params)["items"])

    assert [item["name"] for item in items("/domains")] == ["trade"]
    assert [item["namespace"] for item in items("/adapters")] == ["acme", "globex"]
    assert [item["namespace"] for item in items("/adapters", tenant="globex")] == ["globex"]
    assert [item["run"]["spec"]["namespace"] for item in items("/runs")] == ["globex", "acme", "acme"]
    assert [item["id"] for item in items("/runtimes")] == ["r1"]
    placements = items("/runtimes/r1/placements")
    assert [item["adapter"] for item in placements] == ["acme/spam", "globex/spam"]


@pytest.mark.parametrize("cursor", ["%%%", "bm9wZQ", "MTI", "W10"])
def test_an_invalid_cursor_is_refused(client: TestClient, cursor: str) -> None:
    response = client.get("/admin/v1/tenants", params={"cursor": cursor}, headers=_ADMIN)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "InvalidCursor"


def test_administrators_can_delete_orphans(cluster: Any, client: TestClient) -> None:
    cluster.domain()
    cluster.adapter("spam")
    refused = client.delete("/admin/v1/domains/acme/trade", headers=_ADMIN)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "DomainInUse")
    assert "acme/spam" in refused.json()["error"]["message"]
    cluster.admin("DELETE", "/adapters/acme/spam")
    cluster.admin("DELETE", "/domains/acme/trade")
    assert not cluster.admin("GET", "/adapters")["items"]
    assert not cluster.admin("GET", "/domains")["items"]
    for path, code in (("adapters/acme/spam", "UnknownAdapter"), ("domains/acme/trade", "UnknownDomain")):
        again = client.delete(f"/admin/v1/{path}", headers=_ADMIN)
        assert (again.status_code, again.json()["error"]["code"]) == (404, code)
    assert client.delete("/admin/v1/adapters/acme/spam").status_code == 401
