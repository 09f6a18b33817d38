"""The API's description by role, and the port of the metrics."""

import json
import re
from collections.abc import Iterator

import httpx
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from serving import free_port

from hmi_control_plane.app import create_app
from hmi_control_plane.http.openapi import NOT_FOR_TENANTS
from hmi_control_plane.settings import Part, Settings

ADMIN_KEY = "admin-key-of-these-tests"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The same settings with this file's admin key."""
    return settings.model_copy(update={"admin_key": SecretStr(ADMIN_KEY)})


@pytest.fixture
def strict(settings: Settings) -> Iterator[TestClient]:
    """A process whose description needs a key, as on a cluster."""
    changed = settings.model_copy(update={"openapi_is_public": False})
    with TestClient(create_app(changed), raise_server_exceptions=False) as started:
        yield started


def _tenant(client: TestClient) -> dict[str, str]:
    client.post("/admin/v1/tenants", headers=ADMIN, json={"name": "acme"})
    made = client.post("/admin/v1/tenants/acme/keys", headers=ADMIN, json={"name": "k"})
    return {"Authorization": f"Bearer {made.json()['key']}"}


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_where_a_key_is_needed_the_description_is_401_without_one(
    strict: TestClient, path: str, method: str
) -> None:
    for headers in ({}, {"Authorization": "Bearer hmi_wrong"}, {"Authorization": f"Basic {ADMIN_KEY}"}):
        answer = strict.request(method, path, headers=headers)
        assert answer.status_code == 401
        assert "paths" not in answer.text
        assert answer.headers["WWW-Authenticate"].startswith("Basic" if path == "/docs" else "Bearer")
    assert strict.request(method, path, headers=ADMIN).status_code == 200
    assert strict.request(method, path, headers=_tenant(strict)).status_code == 200


def test_a_tenant_gets_only_the_paths_that_its_key_opens(strict: TestClient) -> None:
    key = _tenant(strict)
    whole = strict.get("/openapi.json", headers=ADMIN).json()
    part = strict.get("/openapi.json", headers=key).json()

    assert {path for path in whole["paths"] if not path.startswith(NOT_FOR_TENANTS)} == set(part["paths"])
    for path, item in whole["paths"].items():
        for method in item:
            url = path.format_map(dict.fromkeys(_parameters(path), "x"))
            opened = strict.request(method.upper(), url, headers=key).status_code not in (401, 403)
            assert opened == (path in part["paths"]), f"{method} {path}"


def _parameters(path: str) -> list[str]:
    return [piece.partition("}")[0].partition(":")[0] for piece in path.split("{")[1:]]


def test_a_tenants_description_has_all_its_components_and_no_others(strict: TestClient) -> None:
    whole = strict.get("/openapi.json", headers=ADMIN).json()
    part = strict.get("/openapi.json", headers=_tenant(strict)).json()
    text = json.dumps(part)
    named = {piece.partition('"')[0] for piece in text.split("#/components/schemas/")[1:]}

    assert named == set(part["components"]["schemas"])
    assert len(part["components"]["schemas"]) < len(whole["components"]["schemas"])
    for inner in ("RunResult", "Heartbeat", "/internal/v1", "/admin/v1/tenants"):
        assert inner in json.dumps(whole)
        assert inner not in json.dumps({**part, "info": {}})


def test_on_one_machine_no_key_is_needed(client: TestClient) -> None:
    whole = client.get("/openapi.json", headers=ADMIN).json()

    assert client.get("/openapi.json").json() == whole
    assert client.get("/docs").status_code == 200
    assert set(client.get("/openapi.json", headers=_tenant(client)).json()["paths"]) < set(whole["paths"])


def test_a_gateway_works_without_an_admin_key(settings: Settings) -> None:
    changed = settings.model_copy(update={"openapi_is_public": False, "admin_key": None})

    with TestClient(create_app(changed, Part.GATEWAY)) as gateway:
        assert gateway.get("/openapi.json", headers=ADMIN).status_code == 401


# --- metrics ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", list(Part))
def test_metrics_can_have_their_own_port(settings: Settings, part: Part) -> None:
    port = free_port()
    changed = settings.model_copy(update={"metrics_port": port, "host": "127.0.0.1"})

    with TestClient(create_app(changed, part)) as started:
        assert started.get("/metrics").status_code in (401, 404)
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
        assert answer.headers["content-type"].startswith("text/plain")
        assert "hmi_requests_total" in answer.text
        for other in ("/", "/healthz", "/openapi.json", "/admin/v1/tenants"):
            assert httpx.get(f"http://127.0.0.1:{port}{other}", trust_env=False).status_code == 404
        assert httpx.post(f"http://127.0.0.1:{port}/metrics", trust_env=False).status_code == 501
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)


def test_without_a_metrics_port_the_api_serves_metrics(client: TestClient) -> None:
    assert "hmi_requests_total" in client.get("/metrics").text


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
def test_a_browser_signs_in_with_the_key_as_its_password(strict: TestClient, path: str) -> None:
    key = _tenant(strict)["Authorization"].removeprefix("Bearer ")

    assert strict.get(path, auth=("anybody", key)).status_code == 200
    assert strict.get(path, auth=("anybody", ADMIN_KEY)).status_code == 200
    assert strict.get(path, auth=(ADMIN_KEY, "wrong")).status_code == 401
    assert strict.get(path, headers={"Authorization": "Basic !!!"}).status_code == 401


def test_the_page_loads_nothing_from_another_host(strict: TestClient) -> None:
    page = strict.get("/docs", headers=ADMIN).text
    linked = re.findall(r'(?:src|href)="([^"]+)"', page)

    assert len(linked) == 3
    for link in linked:
        assert link.startswith("/docs/assets/")
        assert strict.get(link).status_code == 200
    assert "://" not in page.replace("http://www.w3.org", "")


def test_the_description_names_the_credential_of_each_operation(strict: TestClient) -> None:
    whole = strict.get("/openapi.json", headers=ADMIN).json()
    schemes = whole["components"]["securitySchemes"]

    assert {scheme["scheme"] for scheme in schemes.values()} == {"bearer"}
    for path, item in whole["paths"].items():
        url = path.format_map(dict.fromkeys(_parameters(path), "x"))
        for method, operation in item.items():
            needs = strict.request(method.upper(), url).status_code == 401
            assert needs == bool(operation.get("security")), f"{method} {path}"
            assert all(name in schemes for entry in operation.get("security", []) for name in entry)
    part = strict.get("/openapi.json", headers=_tenant(strict)).json()
    assert set(part["components"]["securitySchemes"]) == {"tenantKey"}
