"""The control plane's processes: what each serves, how they start, and how they stop."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from serving import LIMIT, eventually, free_port
from sqlalchemy import text

from hmi_control_plane.__main__ import DONE, TIMED_OUT, WRONG_SETTINGS, configure_logging, main
from hmi_control_plane.app import create_app
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.migrate import is_behind, upgrade
from hmi_control_plane.settings import Part, Settings


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """The settings that every part needs."""
    variables = {
        "HMI_DATABASE_URL": f"sqlite:///{tmp_path / 'catalog.db'}",
        "HMI_USAGE_DIR": str(tmp_path / "usage"),
        "HMI_ARTIFACTS": str(tmp_path / "artifacts"),
        "HMI_INTERNAL_TOKEN": "internal-token-of-the-tests",
        "HMI_ADMIN_KEY": "admin-key-of-the-tests",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.mark.parametrize(
    ("part", "there", "absent"),
    [
        (Part.SERVE, ["/classify", "/internal/v1/runs", "/admin/v1/tenants", "/v1/usage"], []),
        (
            Part.GATEWAY,
            ["/classify", "/v1/models", "/v2", "/v1/usage", "/v1/bill", "/v1/invoices/{invoice_id}"],
            ["/internal/", "/admin/"],
        ),
        (
            Part.CONTROL_PLANE,
            ["/internal/v1/runs", "/admin/v1/tenants", "/v1/usage"],
            ["/classify", "/v1/models", "/v2"],
        ),
    ],
)
def test_each_part_serves_only_its_own_routes(
    settings: Settings, part: Part, there: list[str], absent: list[str]
) -> None:
    with TestClient(create_app(settings, part)) as client:
        paths = client.get("/openapi.json").json()["paths"]
        assert {path for path in there if path not in paths} == set()
        assert [path for path in paths if path.startswith(tuple(absent))] == []
        for path in ("/healthz", "/readyz", "/metrics"):
            assert client.get(path).status_code == 200


def test_a_gateway_serves_every_path_of_a_tenant(settings: Settings) -> None:
    def tenants(part: Part) -> set[str]:
        paths = create_app(settings, part).openapi()["paths"]
        return {path for path in paths if not path.startswith(("/admin/", "/internal/"))}

    assert tenants(Part.GATEWAY) == tenants(Part.SERVE)


def test_a_control_plane_process_does_not_lock_the_spool(settings: Settings) -> None:
    first, second = create_app(settings, Part.GATEWAY), create_app(settings, Part.CONTROL_PLANE)
    with TestClient(first), TestClient(second) as client:
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("command", "missing", "named"),
    [
        ("gateway", "HMI_INTERNAL_TOKEN", "HMI_TOKEN_REVIEW"),
        ("control-plane", "HMI_ADMIN_KEY", "HMI_ADMIN_KEY"),
    ],
)
def test_a_missing_setting_is_named(
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    missing: str,
    named: str,
) -> None:
    monkeypatch.delenv(missing)
    assert main([command]) == WRONG_SETTINGS
    assert named in capsys.readouterr().err


def test_wait_for_schema_succeeds_after_migrate(environment: dict[str, str], tmp_path: Path) -> None:
    assert main(["wait-for-schema", "--timeout", "0"]) == TIMED_OUT
    assert main(["migrate"]) == DONE
    assert main(["wait-for-schema", "--timeout", "0"]) == DONE


def test_an_older_schema_is_behind_and_a_newer_one_is_not(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'catalog.db'}"
    database = Database(url)
    assert is_behind(database)
    upgrade(url, "0001")
    assert is_behind(database)
    upgrade(url)
    assert not is_behind(database)
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert not is_behind(database)
    database.close()


def test_a_process_waits_for_its_schema_before_it_is_ready(settings: Settings, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'empty.db'}"
    app = create_app(settings.model_copy(update={"database_url": url}), Part.GATEWAY)
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "SchemaTooOld")
        upgrade(url)
        assert client.get("/readyz").status_code == 200


def test_a_log_line_has_the_id_of_its_request(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # pytest's own, with which logging counts as configured
    monkeypatch.setattr(root, "level", root.level)
    configure_logging()
    app = create_app(settings, Part.GATEWAY)

    @app.get("/in-event-loop")
    async def in_event_loop() -> None:
        logging.getLogger("test").warning("a line of the event loop")

    @app.get("/in-thread")
    def in_thread() -> None:
        logging.getLogger("test").warning("a line of a thread")

    with TestClient(app) as client:
        client.get("/in-event-loop", headers={"X-Request-Id": "first-1"})
        client.get("/in-thread", headers={"X-Request-Id": "second-2"})
    logging.getLogger("test").warning("a line of no request")
    lines = capsys.readouterr().err
    assert "WARNING test [first-1]: a line of the event loop" in lines
    assert "WARNING test [second-2]: a line of a thread" in lines
    assert "WARNING test [-]: a line of no request" in lines


@pytest.fixture
def gateway(environment: dict[str, str], tmp_path: Path) -> Iterator[Any]:
    """A gateway process that drains for a second, and its address."""
    upgrade(environment["HMI_DATABASE_URL"])
    port = free_port()
    child = subprocess.Popen(
        [sys.executable, "-m", "hmi_control_plane", "gateway"],
        env={**os.environ, "HMI_PORT": str(port), "HMI_DRAIN_DELAY_SECONDS": "1"},
    )
    yield child, f"http://127.0.0.1:{port}"
    child.kill()
    child.wait()


def test_after_sigterm_a_process_is_not_ready_then_ends(gateway: Any, tmp_path: Path) -> None:
    child, url = gateway
    kept: list[bool] = []

    def status(path: str) -> int:
        try:
            answer = httpx.get(f"{url}{path}", timeout=LIMIT)
        except httpx.TransportError:
            return 0
        kept.append(answer.headers.get("connection") != "close")
        return answer.status_code

    eventually(lambda: status("/readyz") == 200, "the gateway is ready")
    assert kept[-1]
    child.send_signal(signal.SIGTERM)
    eventually(lambda: status("/readyz") == 503, "it is not ready while it still answers")
    assert not kept[-1]
    assert child.wait(LIMIT) in (0, -signal.SIGTERM)
