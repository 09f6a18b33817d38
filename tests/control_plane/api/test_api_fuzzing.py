"""Every operation of the HTTP API answers schemathesis' requests as its OpenAPI description says.

The process is one with everything, as ``hmi up`` runs it, on a real PostgreSQL and a real socket. There are a
tenant, a Domain, a TaskAdapter, a run and a runtime: some requests are about something that exists.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_fuzzer import Fuzzer, served
from fastapi import FastAPI

from hmi_control_plane.app import create_app
from hmi_control_plane.settings import Settings

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(1300)]

UPLOAD = "/internal/v1/artifacts/{run_id}/files/{digits}"


@pytest.fixture
def database_url(postgres_url: str) -> str:
    """PostgreSQL: it refuses values that SQLite accepts, such as NUL characters and too large numbers."""
    return postgres_url


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings.model_copy(update={"desired_wait_limit_seconds": 0.0}))


@pytest.fixture
def client(app: FastAPI) -> Iterator[httpx.Client]:
    """A client of the application, on a real socket."""
    with served(app) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as made:
        yield made


def test_no_request_causes_a_500(
    app: FastAPI, client: httpx.Client, cluster: Any, settings: Settings, tmp_path: Path
) -> None:
    cluster.runtime()
    cluster.domain()
    cluster.adapter("spam")
    cluster.declare_adapter("next")
    run = cluster.adapter_run("next")
    key = cluster.admin("POST", "/tenants/acme/keys", {"name": "fuzz"})["key"]
    january = {"tenant": "acme", "from": "2026-01-01T00:00:00Z", "to": "2026-02-01T00:00:00Z"}
    invoice = cluster.admin("POST", "/invoices", january)
    assert settings.admin_key is not None
    assert settings.internal_token is not None
    fuzzer = Fuzzer(
        tmp_path,
        credentials={
            "^/admin/": settings.admin_key.get_secret_value(),
            "^/internal/": settings.internal_token.get_secret_value(),
            "^/(v1|v2|classify)": key,
        },
        names={
            "tenant": ["acme", "nobody"],
            "namespace": ["acme", "nobody"],
            "name": ["spam", "trade", "next", "nothing"],
            "model": ["spam", "nothing"],
            "run_id": [run["id"], "0" * 16],
            "runtime_id": ["r1", "r9"],
            "invoice_id": [invoice["id"], "0" * 32],
        },
    )

    openapi = copy.deepcopy(app.openapi())
    paths = openapi["paths"]
    # GET of this path is the operation of another template, as schemathesis does not know.
    upload = {path: paths.pop(path) for path in [UPLOAD]}
    tenants = {path: methods for path, methods in paths.items() if not _is_inner(path)}
    others = {path: methods for path, methods in paths.items() if _is_inner(path)}
    methods_aside = replace(fuzzer, checks="not_a_server_error,response_schema_conformance")
    # Tenants first: generated requests of administrators delete tenants and revoke keys.
    for part, tried in ((tenants, fuzzer), (others, fuzzer), (upload, methods_aside)):
        report = tried.run(str(client.base_url), openapi | {"paths": part})

        assert report.status == 0, report.text
        operations = sum(len(methods) for methods in part.values())
        assert report.operations == operations
        assert report.requests > 10 * operations, "requests were made up"


def _is_inner(path: str) -> bool:
    return path.startswith(("/admin/", "/internal/"))
