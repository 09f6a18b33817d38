"""The saved key of `--tenant`: created once, replaced when refused, sent to no other server."""

import json
from pathlib import Path

import pytest
from served_command import Run, Served

from hmi_cli.system.home import HomeFolder


@pytest.fixture
def tenant(hmi: Run, request: pytest.FixtureRequest) -> str:
    """A tenant of the test's own."""
    name = request.node.name.replace("_", "-")[-40:].strip("-")
    assert hmi("tenant", "create", name)[0] == 0
    return str(name)


def keys_of(hmi: Run, tenant: str) -> list[dict[str, str]]:
    """Return a tenant's keys as the server lists them."""
    found: list[dict[str, str]] = json.loads(hmi("key", "list", tenant, "-o", "json")[1])
    return found


def test_a_saved_key_is_used_again(hmi: Run, tenant: str) -> None:
    for _ in range(2):
        assert hmi("models", "-t", tenant)[0] == 0
    assert len(keys_of(hmi, tenant)) == 1


def test_a_revoked_key_is_replaced(hmi: Run, served: Served, tenant: str) -> None:
    hmi("models", "-t", tenant)
    hmi("key", "revoke", tenant, keys_of(hmi, tenant)[0]["id"])
    refused = served.home.read_tenant_key(tenant)
    assert hmi("models", "-t", tenant)[0] == 0
    assert served.home.read_tenant_key(tenant) not in (None, refused)
    assert hmi("models", "-t", tenant)[0] == 0
    assert len(keys_of(hmi, tenant)) == 2


def test_the_error_names_the_saved_key_to_remove(
    hmi: Run, served: Served, tenant: str, tmp_path: Path
) -> None:
    guest = HomeFolder(tmp_path / "guest")
    guest.save_tenant_key(tenant, "hmi_revoked_long_ago")
    guest.write_url(served.url)
    code, out, err = hmi("--home", str(guest.path), "models", "-t", tenant)
    assert (code, out) == (1, "")
    assert "no admin key" in err
    assert f"remove {guest.tenant_key_file(tenant)}" in err


def test_another_server_has_a_key_of_its_own(hmi: Run, served: Served, tenant: str, tmp_path: Path) -> None:
    elsewhere = HomeFolder(tmp_path / "elsewhere")
    elsewhere.save_tenant_key(tenant, "hmi_of_another_server")
    elsewhere.write_url("http://127.0.0.1:9")
    there = ("--home", str(elsewhere.path), "--server", served.url)
    admin = str(served.home.read_admin_key())
    for _ in range(2):
        assert hmi(*there, "--admin-key", admin, "models", "-t", tenant)[0] == 0
    assert len(keys_of(hmi, tenant)) == 1
    assert elsewhere.read_tenant_key(tenant) == "hmi_of_another_server"
