"""A tenant on the command line takes precedence over a key in the environment."""

import json
from pathlib import Path

import pytest
from served_command import Run, Served


@pytest.fixture
def key(hmi: Run) -> str:
    """The key of the tenant granary; there is a tenant seaview, too."""
    for tenant in ("granary", "seaview"):
        hmi("tenant", "create", tenant)
    return hmi("key", "create", "granary")[1].strip()


def test_a_named_tenant_takes_precedence_over_the_key_in_the_environment(
    hmi: Run, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HMI_API_KEY", key)
    assert json.loads(hmi("bill", "seaview", "-o", "json")[1])["tenant"] == "seaview"
    assert json.loads(hmi("bill", "-o", "json")[1])["tenant"] == "granary"
    monkeypatch.setenv("HMI_API_KEY", "hmi_of_nobody")
    assert hmi("usage", "seaview")[0] == 0
    assert hmi("usage")[0] == 1


@pytest.mark.parametrize("command", ["usage", "bill"])
def test_without_an_admin_key_other_figures_are_not_shown_instead(
    hmi: Run, served: Served, key: str, tmp_path: Path, command: str
) -> None:
    empty_home = ("--home", str(tmp_path), "--server", served.url)
    code, out, err = hmi(*empty_home, command, "seaview", "--key", key)
    assert (code, out) == (1, "")
    assert "no admin key" in err
    assert "leave TENANT out" in err
    assert hmi(*empty_home, command, "--key", key)[0] == 0


@pytest.mark.parametrize(
    "arguments", [["usage", ""], ["bill", ""], ["classify", "-t", "", "model", "text"], ["models", "-t", ""]]
)
def test_an_empty_tenant_name_is_refused(
    hmi: Run, key: str, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("HMI_API_KEY", key)
    code, out, err = hmi(*arguments)
    assert (code, out) == (2, "")
    assert "empty" in err
