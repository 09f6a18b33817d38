"""Every error has the same format; no body is read beyond its limit."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from hmi_api.security.request_body import BodyLimit, RequestBodyMiddleware
from hmi_control_plane.app import create_app
from hmi_control_plane.http import errors
from hmi_control_plane.http.middleware import request_id_middleware
from hmi_control_plane.settings import Settings

_ADMIN = {"Authorization": "Bearer admin-key-of-the-tests"}
_LIMIT = 100


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """SQLite alone: none of this depends on the database."""
    return sqlite_url


@pytest.fixture
def echo() -> Iterator[TestClient]:
    """A small application behind the same middleware; its routes read bodies or fail."""
    app = FastAPI()
    errors.install_error_handlers(app)
    app.add_middleware(
        RequestBodyMiddleware,
        default=BodyLimit(_LIMIT),
        refuse=errors.refuse_body,
        limits={"/big/": BodyLimit(10 * _LIMIT)},
    )
    app.add_middleware(request_id_middleware)

    @app.post("/read")
    @app.post("/big/read")
    async def read(request: Request) -> int:
        return len(await request.body())

    @app.get("/fail")
    async def fail() -> None:
        raise RuntimeError("a secret of ours")

    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/unknown", 404, "NotFound"),
        ("DELETE", "/healthz", 405, "MethodNotAllowed"),
        ("GET", "/admin/v1/tenants/Not-A-Label", 422, "InvalidField"),
        ("GET", "/admin/v1/tenants?limit=0", 422, "InvalidField"),
        ("GET", "/admin/v1/tenants/nobody", 404, "UnknownTenant"),
    ],
)
def test_errors_have_one_shape(client: TestClient, method: str, path: str, status: int, code: str) -> None:
    response = client.request(method, path, headers=_ADMIN)
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == code
    assert response.headers["x-request-id"]


def test_malformed_json_differs_from_an_invalid_field(client: TestClient) -> None:
    headers = _ADMIN | {"Content-Type": "application/json"}
    malformed = client.post("/admin/v1/tenants", content=b'{"name": ', headers=headers)
    assert (malformed.status_code, malformed.json()["error"]["code"]) == (400, "MalformedJson")
    unknown = client.post("/admin/v1/tenants", json={"name": "acme", "nmae": 1}, headers=_ADMIN)
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (422, "nmae")


MISSHAPEN: list[tuple[str, str, Any, str | None, str]] = [
    ("POST", "tenants", {}, "name", "name is missing."),
    ("POST", "tenants", {"name": 5}, "name", "name must be a string."),
    ("POST", "tenants", {"name": "a", "nmae": "b"}, "nmae", "nmae is not a known field."),
    ("POST", "tenants", ["acme"], None, "The body must be an object."),
    ("POST", "tenants", None, None, "The body is missing."),
    ("PATCH", "tenants/acme", {"display_name": 5}, "display_name", "display_name must be a string."),
    (
        "PUT",
        "prices",
        {"meter": "rows", "unitPrice": 5},
        "unitPrice",
        'unitPrice: an amount of money is a string such as "0.25", since a JSON number may lose digits.',
    ),
    ("GET", "tenants?limit=many", None, "limit", "limit must be a whole number."),
]


@pytest.mark.parametrize(("method", "path", "body", "param", "message"), MISSHAPEN)
def test_invalid_fields_are_explained_in_terms_of_json(
    client: TestClient, method: str, path: str, body: Any, param: str | None, message: str
) -> None:
    response = client.request(method, f"/admin/v1/{path}", json=body, headers=_ADMIN)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["message"]) == (422, param, message)


def test_a_body_without_the_json_content_type_is_415_with_the_header(client: TestClient) -> None:
    for kind in ({"Content-Type": "application/x-www-form-urlencoded"}, {}):
        response = client.post("/admin/v1/tenants", content=b'{"name": "acme"}', headers=_ADMIN | kind)
        assert (response.status_code, response.json()["error"]["code"]) == (415, "UnsupportedMediaType")
        assert "Content-Type: application/json" in response.json()["error"]["message"]


def test_an_internal_error_shows_no_traceback(echo: TestClient) -> None:
    response = echo.get("/fail", headers={"X-Request-Id": "abc-1"})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"] == "abc-1"


@pytest.mark.parametrize("given", ["ok-123", "a/b+c=", "x" * 128])
def test_a_request_id_is_echoed(client: TestClient, given: str) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "two words", 'quote"'])
def test_an_invalid_request_id_is_replaced(client: TestClient, given: str) -> None:
    made = client.get("/healthz", headers={"X-Request-Id": given}).headers["x-request-id"]
    assert made not in {"", given}


def test_a_body_with_too_large_a_content_length_is_refused(echo: TestClient) -> None:
    response = echo.post("/read", content=b"x" * (_LIMIT + 1))
    assert (response.status_code, response.json()["error"]["code"]) == (413, "BodyTooLarge")
    assert echo.post("/read", content=b"x" * _LIMIT).json() == _LIMIT


def test_a_streamed_body_is_refused_when_it_exceeds_the_limit(echo: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(3):
            yield b"x" * 50

    response = echo.post("/read", content=chunks())
    assert (response.status_code, response.json()["error"]["code"]) == (413, "BodyTooLarge")
    assert echo.post("/big/read", content=chunks()).json() == 150


def test_health_readiness_and_metrics_need_no_key(client: TestClient) -> None:
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 200
    client.get("/admin/v1/tenants/nobody", headers=_ADMIN)
    client.get("/unknown")
    metrics = client.get("/metrics").text
    assert 'hmi_requests_total{code="200",route="/healthz"} 1.0' in metrics
    assert 'hmi_requests_total{code="404",route="/admin/v1/tenants/{tenant}"} 1.0' in metrics
    assert 'hmi_requests_total{code="404",route="unmatched"} 1.0' in metrics


def test_two_applications_do_not_share_metrics(client: TestClient, settings: Settings) -> None:
    client.get("/healthz")
    other = settings.model_copy(update={"usage_dir": settings.usage_dir / "other"})
    with TestClient(create_app(other)) as second:
        assert 'route="/healthz"' not in second.get("/metrics").text


def test_an_unavailable_database_is_503(settings: Settings) -> None:
    absent = settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:1/none"})
    with TestClient(create_app(absent), raise_server_exceptions=False) as started:
        assert started.get("/healthz").status_code == 200
        for path in ("/readyz", "/admin/v1/tenants"):
            response = started.get(path, headers=_ADMIN)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "DatabaseUnavailable")
            assert response.headers["retry-after"]
