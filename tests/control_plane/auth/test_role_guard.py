"""Which component may call which internal route, with tokens that an API server reviews."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hmi_api.security.internal_auth import ServiceAccounts
from hmi_control_plane.app import create_app
from hmi_control_plane.settings import Part, Settings

PARTS = {
    "operator": "system:serviceaccount:hmi-system:hmi-operator",
    "runtime": "system:serviceaccount:hmi-system:hmi-runtime",
    "gateway": "system:serviceaccount:hmi-system:hmi-gateway",
    "control_plane": "system:serviceaccount:hmi-system:hmi-control-plane",
}
TRAINERS = {
    "acme's trainer": "system:serviceaccount:acme:default",
    "bolt's trainer": "system:serviceaccount:bolt:default",
}
OTHERS = {
    "another account": "system:serviceaccount:acme:builder",
    "default of hmi-system": "system:serviceaccount:hmi-system:default",
}


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """SQLite alone: nothing here depends on the database."""
    return sqlite_url


@pytest.fixture
def reviewed(settings: Settings, token_reviews: Any, tmp_path: Path) -> Settings:
    """Settings of a control plane on Kubernetes; every account's token is its name in the tables above."""
    own = tmp_path / "token"
    own.write_text("own-token")
    token_reviews.accounts |= {**PARTS, **TRAINERS, **OTHERS}
    token_reviews.pods |= {who: f"pod of {who}" for who in TRAINERS}
    return settings.model_copy(
        update={
            "internal_token": None,
            "token_review": True,
            "roles": ServiceAccounts(**PARTS),
            "kubernetes_url": token_reviews.url,
            "kubernetes_token_file": own,
        }
    )


@pytest.fixture
def client(reviewed: Settings) -> Iterator[TestClient]:
    """The control plane without the gateway, as on Kubernetes."""
    app = create_app(reviewed, Part.CONTROL_PLANE)
    with TestClient(app, raise_server_exceptions=False) as started:
        yield started


class As:
    """Calls the internal API with an account's token."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def __call__(self, who: str, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {who}"}
        return self.client.request(method, f"/internal/v1{path}", json=body, headers=headers)


@pytest.fixture
def call(client: TestClient) -> As:
    return As(client)


@pytest.fixture
def run(call: As) -> str:
    """The id of a run in acme's namespace."""
    call("operator", "PUT", "/tenants/acme")
    record = {"uid": "u", "tenant": "acme", "generation": 1, "specDigest": "sha256:1", "baseUri": "wheel://b"}
    call("operator", "PUT", "/domains/acme/trade", record)
    spec = {"baseModel": {"uri": "wheel://b"}, "corpus": [{"uri": "corpus.jsonl"}], "split": 3}
    wanted = {
        "uid": "u",
        "tenant": "acme",
        "specDigest": "sha256:1",
        "spec": {"kind": "domain", "namespace": "acme", "name": "trade", "spec": spec},
    }
    made = call("operator", "POST", "/runs", wanted)
    assert made.status_code == 200, made.text
    run_id = str(made.json()["id"])
    reported = {"pods": [{"uid": "pod of acme's trainer"}]}
    assert call("operator", "PUT", f"/runs/{run_id}/pods", reported).status_code == 204
    return run_id


ROUTES = [
    ("PUT", "/cluster", {"operator"}),
    ("PUT", "/tenants/acme", {"operator"}),
    ("GET", "/domains", {"operator"}),
    ("GET", "/adapters", {"operator"}),
    ("PUT", "/domains/acme/trade", {"operator"}),
    ("GET", "/domains/acme/trade", {"operator"}),
    ("DELETE", "/domains/acme/trade", {"operator"}),
    ("PUT", "/adapters/acme/one", {"operator"}),
    ("GET", "/adapters/acme/one", {"operator"}),
    ("DELETE", "/adapters/acme/one", {"operator"}),
    ("PUT", "/adapters/acme/one/revocation", {"operator"}),
    ("DELETE", "/adapters/acme/one/revocation", {"operator"}),
    ("POST", "/adapters/etags", {"operator"}),
    ("POST", "/adapters/acme/spam/publish-again", {"operator"}),
    ("POST", "/domains/acme/trade/publish-again", {"operator"}),
    ("GET", "/domains/acme/trade/refreshes", {"operator"}),
    ("POST", "/domains/acme/trade/restore-table", {"operator"}),
    ("POST", "/runs", {"operator"}),
    ("PUT", "/runs/RUN/pods", {"operator"}),
    ("GET", "/runs/RUN", {"operator", "acme's trainer"}),
    ("GET", "/runs/RUN/window-counts", {"operator", "acme's trainer"}),
    ("POST", "/runs/RUN/progress", {"operator", "acme's trainer"}),
    ("POST", "/runs/RUN/complete", {"operator", "acme's trainer"}),
    ("POST", "/runs/RUN/fail", {"operator", "acme's trainer"}),
    ("PUT", f"/artifacts/RUN/files/{'0' * 64}", {"acme's trainer"}),
    ("POST", "/artifacts/RUN", {"acme's trainer"}),
    ("GET", f"/artifacts/RUN/{'0' * 64}/manifest.json", {"acme's trainer"}),
    ("PUT", "/runtimes/r1", {"runtime"}),
    ("POST", "/runtimes/r1/heartbeat", {"runtime"}),
    ("POST", "/runtimes/r1/window-counts", {"runtime"}),
    ("POST", "/runtimes/r1/precision-choices", {"runtime"}),
    ("PUT", "/runtimes/r1/engines", {"runtime"}),
    ("GET", "/runtimes/r1/desired", {"runtime"}),
    ("DELETE", "/runtimes/r1", {"runtime"}),
]


@pytest.mark.parametrize(
    ("method", "path", "allowed"), ROUTES, ids=[f"{method} {path}" for method, path, _ in ROUTES]
)
def test_each_internal_route_allows_only_its_roles(
    call: As, run: str, method: str, path: str, allowed: set[str]
) -> None:
    path = path.replace("RUN", run)
    bodies: dict[str, Any] = {
        "progress": {"stage": "corpus", "step": 1, "total": 2},
        "complete": {"artifacts": [], "baseDigest": "sha256:b"},
        "fail": {"reason": "Why", "message": "So."},
    }
    body = bodies.get(path.rpartition("/")[2], {"manifest": "{}"} if "artifacts" in path else None)
    for who in [*PARTS, *TRAINERS]:
        answer = call(who, method, path, body)
        if who in allowed:
            assert answer.status_code not in (401, 403), (who, answer.text)
        else:
            assert answer.status_code == 403, (who, answer.text)
            assert answer.json()["error"]["type"] == "permission_error"
    for who in [*OTHERS, "nobody"]:
        answer = call(who, method, path, body)
        assert answer.status_code == 401, (who, answer.text)
        assert answer.json()["error"]["type"] == "authentication_error"


def test_every_internal_route_is_in_the_table(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    found = {
        (method.upper(), path.removeprefix("/internal/v1"))
        for path, methods in paths.items()
        if path.startswith("/internal/v1/")
        for method in methods
    }

    def matches(method: str, template: str, row: tuple[str, str, set[str]]) -> bool:
        return row[0] == method and re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), row[1]) is not None

    for method, template in found:
        assert any(matches(method, template, row) for row in ROUTES), (method, template)
    assert len(found) == len(ROUTES)


def test_a_trainer_of_another_namespace_is_403_with_the_reason(call: As, run: str) -> None:
    answer = call("bolt's trainer", "GET", f"/runs/{run}")
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "OtherNamespace"


def test_an_api_server_that_fails_is_503_and_not_401(call: As, token_reviews: Any) -> None:
    token_reviews.status = 500
    answer = call("operator", "PUT", "/tenants/acme")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert answer.json()["error"]["code"] == "TokenReviewFailed"


def test_the_admin_key_is_refused_by_the_internal_api_and_the_internal_token_by_the_admin_api(
    client: TestClient,
) -> None:
    key = {"Authorization": "Bearer admin-key-of-the-tests"}
    assert client.put("/internal/v1/tenants/acme", headers=key).status_code == 401
    assert client.get("/admin/v1/tenants", headers=key).status_code == 200
    token = {"Authorization": "Bearer operator"}
    assert client.get("/admin/v1/tenants", headers=token).status_code == 401


@pytest.mark.parametrize(("who", "status"), [(None, 401), ("nobody", 401), ("gateway", 403)])
@pytest.mark.anyio
async def test_no_body_is_read_before_the_caller_is_authenticated(
    client: TestClient, who: str | None, status: int
) -> None:
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    if who is not None:
        headers.append((b"authorization", f"Bearer {who}".encode()))
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/internal/v1/runs",
        "raw_path": b"/internal/v1/runs",
        "query_string": b"",
        "headers": headers,
    }
    await client.app(scope, receive, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == status
    assert read == 0
