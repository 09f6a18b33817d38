"""Exit codes and messages of the command line."""

from pathlib import Path

import pytest

from hmi_cli.main import main

NO_SERVER = ["--server", "http://127.0.0.1:9", "--admin-key", "x"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command line in this process; return its exit code, output and errors."""
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_version_names_itself_and_the_api(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "version")
    assert code == 0
    assert "hmi.dev/v1alpha1" in out


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in (
        "up",
        "apply",
        "get",
        "describe",
        "delete",
        "classify",
        "usage",
        "models",
        "version",
        "demo",
    ):
        assert command in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["get"],
        ["get", "pods"],
        ["get", "dom", "x", "-A"],
        ["get", "all", "x"],
        ["get", "all", "-w"],
        ["get", "dom/x", "y"],
        ["apply"],
        ["apply", "-f", "/nowhere.yaml"],
        ["delete"],
        ["delete", "dom"],
        ["classify"],
        ["classify", "model", "text"],
        ["bill"],
    ],
)
def test_an_invalid_command_line_exits_with_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.delenv("HMI_API_KEY", raising=False)
    code, _, err = run(capsys, *NO_SERVER, *arguments)
    assert code == 2
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments", [["get", "dom"], ["usage"], ["models", "--key", "k"], ["tenant", "list"]]
)
def test_without_a_server_it_exits_with_1_and_says_how_to_start_one(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    code, _, err = run(capsys, *NO_SERVER, *arguments)
    assert code == 1
    assert "hmi up" in err


def test_without_a_key_it_says_where_to_find_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "--home", str(tmp_path), "get", "dom")
    assert code == 1
    assert "HMI_ADMIN_KEY" in err


@pytest.mark.parametrize("option", ["--key", "--admin-key"])
def test_a_key_with_a_letter_that_no_key_has_exits_with_2(
    capsys: pytest.CaptureFixture[str], option: str
) -> None:
    command = ["models", "--key", "schlüssel"] if option == "--key" else ["--admin-key", "schlüssel", "usage"]
    code, _, err = run(capsys, "--server", "127.0.0.1:9", *command)
    assert code == 2
    assert "'ü'" in err
    assert "Traceback" not in err
