"""The resource API of one machine refuses or takes whatever schemathesis makes up: never an error of ours."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from api_fuzzer import Fuzzer, served
from fastapi import FastAPI

from hmi_operator.embedded import FileResourceStore, router

pytestmark = pytest.mark.timeout(700)
ROOT = "/apis/hmi.dev/v1alpha1"


def _open() -> None:
    """Let everybody in."""


def _without_watches(openapi: dict[str, Any]) -> dict[str, Any]:
    """Leave out ``?watch=true``, whose answer has no end."""
    for methods in openapi["paths"].values():
        for operation in methods.values():
            parameters = operation.get("parameters", [])
            operation["parameters"] = [item for item in parameters if item["name"] != "watch"]
    return openapi


def test_no_request_is_an_error_of_ours(tmp_path: Path, domain_body: dict[str, Any]) -> None:
    app = FastAPI()
    app.include_router(router(FileResourceStore(tmp_path / "resources"), _open))
    fuzzer = Fuzzer(
        tmp_path,
        credentials={},
        names={"namespace": ["shop"], "plural": ["domains", "taskadapters"], "name": ["hotel"]},
        checks="not_a_server_error,unsupported_method",
        examples=30,
    )
    with served(app) as url:
        made = httpx.post(f"{url}{ROOT}/namespaces/shop/domains", json=domain_body, trust_env=False)
        assert made.is_success, made.text

        report = fuzzer.run(url, _without_watches(app.openapi()))

    assert report.status == 0, report.text
    assert report.operations == sum(len(methods) for methods in app.openapi()["paths"].values())
    assert report.requests > 20 * report.operations, "requests were made up"
