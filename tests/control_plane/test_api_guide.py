"""docs/api.md lists every endpoint, and no other."""

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

_GUIDE = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """SQLite alone: the API is the same on both."""
    return sqlite_url


def test_docs_list_every_endpoint_and_no_other(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    served = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    listed = set(re.findall(r"`((?:GET|PUT|POST|PATCH|DELETE) /[^`]*)`", _GUIDE.read_text()))
    assert listed == served


def test_the_openapi_description_has_the_error_format(client: TestClient) -> None:
    contract = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in contract["components"]["schemas"]
    for methods in contract["paths"].values():
        for operation in methods.values():
            assert "default" in operation["responses"]
