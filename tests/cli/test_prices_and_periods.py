"""Prices, periods and tenants that the server validates."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from served_command import Run
from typer.testing import CliRunner

from hmi_cli.main import app

INSTALLATIONS_CURRENCY = "EUR"


@pytest.fixture(scope="module", autouse=True)
def _currency() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HMI_CURRENCY", INSTALLATIONS_CURRENCY)
        yield


def test_a_price_is_set_in_the_installations_currency(hmi: Run) -> None:
    code, out, _ = hmi("price", "set", "rows", "0.01")
    assert code == 0
    assert out.startswith("rows costs 0.01 EUR from ")
    hmi("tenant", "create", "acme")
    assert json.loads(hmi("bill", "acme", "-o", "json")[1])["currency"] == "EUR"
    assert hmi("price", "set", "rows", "0.02", "--currency", "JPY")[1].startswith("rows costs 0.02 JPY")
    prices = json.loads(hmi("price", "list", "-o", "json")[1])
    assert [(price["currency"], price["unitPrice"]) for price in prices] == [("EUR", "0.01"), ("JPY", "0.02")]


@pytest.mark.parametrize("command", ["usage", "bill"])
def test_a_moment_is_read_as_the_server_reads_it(hmi: Run, command: str) -> None:
    hmi("tenant", "create", "granary")
    assert hmi(command, "granary", "--from", "2026-11-01T02:00:00+02:00", "--to", "2026-11-02")[0] == 0
    code, out, err = hmi(command, "granary", "--from", "20261101")
    assert (code, out) == (1, "")
    assert "RFC 3339" in err


@pytest.mark.parametrize("command", ["usage", "bill"])
def test_figures_of_an_unknown_tenant_are_an_error(hmi: Run, command: str) -> None:
    code, out, err = hmi(command, "nobody")
    assert (code, out) == (1, "")
    assert "There is no tenant nobody" in err


def test_a_deleted_tenant_is_distinguished_from_a_new_one_of_its_name(hmi: Run) -> None:
    hmi("tenant", "create", "initech")
    (old,) = [
        one["id"] for one in json.loads(hmi("tenant", "list", "-o", "json")[1]) if one["name"] == "initech"
    ]
    assert hmi("tenant", "delete", "initech")[0] == 0
    assert hmi("tenant", "delete", "initech")[0] == 1
    hmi("tenant", "create", "initech")
    assert old not in hmi("tenant", "list")[1]
    assert old in hmi("tenant", "list", "--deleted")[1]
    assert json.loads(hmi("bill", old, "-o", "json")[1])["tenantId"] == old
    assert json.loads(hmi("bill", "initech", "-o", "json")[1])["tenantId"] != old


def test_up_listens_on_the_address_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listened: list[tuple[str, int]] = []

    def listen(host: str, port: int) -> socket.socket:
        listened.append((host, port))
        raise OSError("nothing is started here")

    monkeypatch.setattr("hmi_cli.system.server.listen", listen)
    monkeypatch.setenv("HMI_HOST", "127.0.0.2")
    monkeypatch.setenv("HMI_PORT", "9123")
    CliRunner().invoke(app, ["--home", str(tmp_path), "up"])
    assert listened == [("127.0.0.2", 9123)]
