"""Text that no database can store and invalid cursors are 4xx errors, never 500."""

import base64
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hmi_control_plane.catalog.paging import NUMBER_CURSOR, TEXT_CURSOR, decode_cursor, encode_cursor
from hmi_control_plane.settings import Settings

LISTS = [
    "/admin/v1/tenants",
    "/admin/v1/tenants/acme/keys",
    "/admin/v1/domains",
    "/admin/v1/adapters",
    "/admin/v1/artifacts",
    "/admin/v1/runs",
    "/admin/v1/runtimes",
    "/admin/v1/runtimes/r1/placements",
    "/admin/v1/usage",
    "/admin/v1/invoices",
]
KEYS: dict[str, Any] = {
    "a lone surrogate": "\ud800",
    "NUL": "a\0b",
    "a huge number": 10**30,
    "a negative number": -1,
    "a fraction": 1.5,
    "true": True,
    "null": None,
    "an object": {"a": 1},
    "a deep list": [[[[[[[["a"]]]]]]]],
    "a long text": "a" * 600,
    "four parts with NUL": ["a", "\0", "", ""],
    "four parts with a surrogate": ["a", "\udfff", "", ""],
    "four numbers": [1, 2, 3, 4],
}


def _made_up(key: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


CURSORS = {name: _made_up(key) for name, key in KEYS.items()} | {
    "no base64": "***",
    "no JSON": base64.urlsafe_b64encode(b"{").decode(),
    "no UTF-8": base64.urlsafe_b64encode(b'"\xff"').decode(),
    "10,000 brackets": base64.urlsafe_b64encode(b"[" * 10_000).decode(),
    "NaN": base64.urlsafe_b64encode(b"NaN").decode(),
    "nothing": "",
}


@pytest.fixture
def database_url(postgres_url: str) -> str:
    """PostgreSQL: it refuses values that SQLite accepts."""
    return postgres_url


@pytest.fixture
def admin(settings: Settings) -> dict[str, str]:
    """The headers of an administrator."""
    assert settings.admin_key is not None
    return {"Authorization": f"Bearer {settings.admin_key.get_secret_value()}"}


@pytest.fixture
def lists(cluster: Any) -> TestClient:
    """A control plane that has a tenant, a runtime and an adapter."""
    cluster.runtime()
    cluster.domain()
    cluster.adapter("spam")
    client: TestClient = cluster.client
    return client


@pytest.mark.parametrize("path", LISTS)
def test_invalid_cursors_are_refused(lists: TestClient, path: str, admin: dict[str, str]) -> None:
    for name, cursor in CURSORS.items():
        answer = lists.get(path, params={"cursor": cursor}, headers=admin)

        assert answer.status_code in (400, 422), f"{name}: {answer.status_code} {answer.text}"
        assert answer.json()["error"]["code"] in ("InvalidCursor", "InvalidField"), name


@pytest.mark.parametrize("text", ["a\0b", "\0"])
@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("POST", "/admin/v1/tenants", "displayName"),
        ("PATCH", "/admin/v1/tenants/acme", "displayName"),
        ("POST", "/admin/v1/tenants/acme/keys", "name"),
    ],
)
def test_text_that_cannot_be_stored_is_refused_with_its_field(
    lists: TestClient, admin: dict[str, str], method: str, path: str, field: str, text: str
) -> None:
    body = {"name": "other"} | {field: text} if path.endswith("/tenants") else {field: text}

    answer = lists.request(method, path, json=body, headers=admin)

    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("InvalidField", field)
    assert "NUL" in error["message"]


@pytest.mark.parametrize("field", ["displayName", "name"])
def test_lone_surrogates_are_refused(lists: TestClient, admin: dict[str, str], field: str) -> None:
    path = "/admin/v1/tenants/acme" + ("/keys" if field == "name" else "")
    method = "POST" if field == "name" else "PATCH"

    answer = lists.request(
        method,
        path,
        content=b'{"%s": "\\ud800"}' % field.encode(),
        headers=admin | {"content-type": "application/json"},
    )

    assert answer.status_code in (400, 422), answer.text


@pytest.mark.parametrize(
    "path",
    ["/admin/v1/adapters", "/admin/v1/domains", "/admin/v1/runs", "/admin/v1/usage", "/admin/v1/invoices"],
)
@pytest.mark.parametrize("tenant", ["a%00", "A B", "%ED%A0%80", "a" * 64])
def test_an_invalid_tenant_name_in_a_filter_is_refused(
    lists: TestClient, admin: dict[str, str], path: str, tenant: str
) -> None:
    answer = lists.get(f"{path}?tenant={tenant}", headers=admin)

    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "tenant"


def test_cursors_decode_to_the_encoded_key() -> None:
    for key in ("acme", "é", 0, 2**63 - 1):
        kind: Any = NUMBER_CURSOR if isinstance(key, int) else TEXT_CURSOR
        assert decode_cursor(encode_cursor(key), kind) == key
    assert decode_cursor(None, TEXT_CURSOR) is None
