"""Every command with invalid input: an error message, no traceback, and an exit code other than 0."""

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer

from hmi_api.resources.yaml_reader import read_documents
from hmi_cli.main import app, main
from hmi_cli.render.output import dump_yaml

# One command line for each command there is; `--home` and `--server` come before it.
COMMANDS: dict[str, list[str]] = {
    "apply": ["apply", "-f", "good.yaml"],
    "get": ["get", "dom", "x"],
    "describe": ["describe", "ta", "x"],
    "delete": ["delete", "dom", "x", "--timeout", "0"],
    "refresh": ["refresh", "x"],
    "rollback": ["rollback", "x"],
    "classify": ["classify", "topic", "a text", "--key", "k"],
    "models": ["models", "--key", "k"],
    "usage": ["usage"],
    "bill": ["bill", "acme"],
    "price list": ["price", "list"],
    "price set": ["price", "set", "rows", "0.01"],
    "tenant create": ["tenant", "create", "acme"],
    "tenant list": ["tenant", "list"],
    "tenant delete": ["tenant", "delete", "acme"],
    "key create": ["key", "create", "acme"],
    "key list": ["key", "list", "acme"],
    "key revoke": ["key", "revoke", "acme", "k1"],
    "up": ["up", "--port", "0"],
    "demo": ["demo"],
    "version": ["version"],
}
ASKS = [name for name in COMMANDS if name not in ("up", "demo", "version")]
GOOD = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HMI_API_KEY", "HMI_ADMIN_KEY", "HMI_SERVER", "HMI_HOME", "HMI_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    Path("good.yaml").write_text(GOOD)


@contextmanager
def server(answer: bytes, status: int = 200) -> Iterator[str]:
    """Serve one answer to every request."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815 -- as http.server names them

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{serving.server_port}"
    finally:
        serving.shutdown()
        thread.join()
        serving.server_close()


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process; returns the exit code and standard error."""

    def run(*arguments: str) -> tuple[int, str]:
        code = main(list(arguments))
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return code, said

    return run


def commands_of(command: Any, name: str = "") -> Iterator[str]:
    for child, inner in getattr(command, "commands", {}).items():
        yield from commands_of(inner, f"{name} {child}".strip())
    if not hasattr(command, "commands"):
        yield name


def test_every_command_is_in_the_table() -> None:
    assert sorted(commands_of(typer.main.get_command(app))) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_arguments_that_are_not_text_are_refused(run: Run, name: str) -> None:
    code, said = run(*COMMANDS[name], "b\udcffd")
    assert code == 2
    assert "the argument 'b\\udcffd' is not UTF-8 text" in said


ANSWERS = [
    b"",
    b"[]",
    b"{}",
    b"5",
    b"null",
    b'{"items": 5, "data": 5, "models": 5}',
    b'{"items": [5], "data": [5], "models": [5], "lines": [5], "key": 5}',
    b'{"items": [null], "metadata": null, "data": [{}], "models": [{}], "error": 5}',
    b'{"items": [], "nextCursor": "again"}',
    b"\xff\xfe",
    b"<html>",
    b"[" * 100_000,
    b'{"a":' * 100_000,
]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: ascii(answer[:20]))
@pytest.mark.parametrize("status", [200, 500])
def test_answers_of_another_kind_of_server_cause_no_traceback(run: Run, answer: bytes, status: int) -> None:
    with server(answer, status) as url:
        for name in ASKS:
            code, said = run("--server", url, "--admin-key", "k", *COMMANDS[name])
            assert code in (0, 1), (name, said)
            assert code == 0 or said.startswith(("error: ", "warning: ", "domain", "No ")), (name, said)
            assert status == 200 or code == 1, (name, said)


@pytest.mark.parametrize("name", ASKS)
def test_invalid_addresses_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for address in ("http://[::1", "http://h:99999", "ftp://h", "http://h\udcff", "http://", "h:x"):
        monkeypatch.setenv("HMI_SERVER", address)
        code, said = run("--admin-key", "k", *COMMANDS[name])
        assert code in (1, 2)
        assert said


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("version", "demo")])
def test_a_home_that_is_a_file_is_reported(run: Run, name: str) -> None:
    Path("file").write_text("")
    code, said = run("--home", "file", *[part for part in COMMANDS[name] if part not in ("--key", "k")])
    assert code in (1, 2)
    assert said.startswith("error: ") or "Usage" in said


@pytest.mark.parametrize("name", ["get", "usage", "key create"])
def test_an_unreadable_home_is_reported(run: Run, name: str) -> None:
    Path("home/secrets").mkdir(parents=True)
    Path("home/secrets/admin-key").write_bytes(b"\xff\xfe")
    Path("home/url").write_bytes(b"\xff")
    code, said = run("--home", "home", *COMMANDS[name])
    assert code == 1
    assert "home/" in said


NAMES = ["a/b", "..", "../..", "a?b=c", "a#b", "a\nb", "\0", "é", "x" * 5000]


@pytest.mark.parametrize("word", NAMES, ids=ascii)
def test_names_are_escaped_in_paths(run: Run, word: str) -> None:
    with server(b'{"message": "none"}', 404) as url:
        for command in (["get", "dom"], ["describe", "ta"], ["delete", "dom"], ["key", "list"], ["bill"]):
            code, said = run("--server", url, "--admin-key", "k", *command, word)
            assert code == 1
            assert said.startswith("error: ")


MANIFESTS: list[tuple[bytes, str]] = [
    (b"a: \xff\n", "line 1 has bytes that are not UTF-8"),
    (b"\x00", "cannot be read as YAML"),
    (b"[" * 100_000, "nested too deeply"),
    (b"- " * 100_000, "nested too deeply"),
    (b"a: &a [*a]", "contains itself"),
    (b"a: [", "cannot be read as YAML"),
    (GOOD.encode() + b"kind: Domain\n", 'the key "kind" is written twice, on lines 2 and 4'),
    (b"{kind: List, items: " * 50 + b"}" * 50, "no objects"),
    (b"5", "has a document that is not an object"),
]


@pytest.mark.parametrize(("content", "words"), MANIFESTS, ids=lambda value: ascii(value)[:20])
@pytest.mark.parametrize("command", ["apply", "delete"])
@pytest.mark.parametrize("source", ["file", "folder", "input"])
def test_errors_in_manifests_say_where(
    run: Run, monkeypatch: pytest.MonkeyPatch, content: bytes, words: str, command: str, source: str
) -> None:
    Path("bad").mkdir()
    Path("bad/x.yaml").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    name = {"file": "bad/x.yaml", "folder": "bad", "input": "-"}[source]
    code, said = run("--admin-key", "k", command, "-f", name)
    assert code == 2
    assert words in said


def test_unreadable_paths_are_reported(run: Run) -> None:
    for name in ("nowhere", "x" * 5000, "good.yaml/x", "\0"):
        code, said = run("--admin-key", "k", "apply", "-f", name)
        assert code in (1, 2)
        assert said.startswith("error: ")


def test_an_address_that_is_not_a_path_is_sent_unchanged(run: Run) -> None:
    domain = {
        "apiVersion": "hmi.dev/v1alpha1",
        "kind": "Domain",
        "metadata": {"name": "a/../b"},
        "spec": {"baseModel": {"uri": "a\0b"}, "corpus": [{"uri": "x" * 5000}]},
    }
    Path("odd.yaml").write_text(json.dumps(domain))
    with server(b"{}", 404) as url:
        code, said = run("--server", url, "--admin-key", "k", "apply", "-f", "odd.yaml")
    assert code == 1
    assert "odd.yaml" in said


def test_input_that_is_not_utf8_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"good\n\xff\n"), encoding="utf-8"))
    code, said = run("classify", "topic", "-", "--key", "k")
    assert code == 2
    assert "standard input has bytes that are not UTF-8" in said


def test_closed_input_is_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert run("apply", "-f", "-") == (2, "error: standard input is closed\n")
    assert run("classify", "topic", "-", "--key", "k")[0] == 2


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "x"])
def test_invalid_times_are_refused(run: Run, seconds: str) -> None:
    assert run("delete", "dom", "x", "--timeout", seconds)[0] == 2
    assert run("demo", "--limit", seconds)[0] == 2


def test_an_unusable_proxy_is_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "nonsense://proxy")
    code, said = run("--server", "http://hmi.example", "--admin-key", "k", "get", "dom")
    assert code == 2
    assert "nonsense" in said


# --- output cannot be written: each in a process of its own ------------------------------


def hmi(*arguments: str, redirect: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a shell line that redirects its output."""
    line = f'"{sys.executable}" -m hmi_cli.main "$@" {redirect}'
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line, "hmi", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("arguments", [["version"], ["--help"], ["get", "--help"]], ids=" ".join)
def test_a_full_disk_is_reported(arguments: list[str]) -> None:
    done = hmi(*arguments, redirect="> /dev/full")
    assert done.returncode == 1
    assert done.stderr == "error: No space left on device\n"


def test_output_to_a_full_disk_is_reported() -> None:
    lists = json.dumps({"items": [{"metadata": {"name": "x", "namespace": "y"}}]}).encode()
    with server(lists) as url:
        done = hmi("--server", url, "--admin-key", "k", "get", "dom", "-o", "yaml", redirect="> /dev/full")
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


@pytest.mark.parametrize("redirect", ["2> /dev/full", "2>&-", "> /dev/full 2>&1", ">&- 2>&-", "<&-"])
def test_with_standard_error_closed_the_exit_code_reports_it(redirect: str) -> None:
    done = hmi("get", "pods", redirect=redirect)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stdout + done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("arguments", [["version"], ["--help"]], ids=" ".join)
def test_a_closed_pipe_causes_no_traceback(arguments: list[str]) -> None:
    done = hmi(*arguments, redirect="| true")
    assert done.returncode in (0, 1, 141)  # 0 where the reader was slower to go
    assert done.stderr == ""


def test_closed_output_causes_no_traceback() -> None:
    done = hmi("version", redirect=">&-")
    assert done.stderr == ""


def test_a_terminal_without_unicode_causes_no_traceback() -> None:
    lists = json.dumps({"items": [{"metadata": {"name": "é", "namespace": "y"}}]}).encode()
    with server(lists) as url:
        done = hmi("--server", url, "--admin-key", "k", "get", "dom", redirect="", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")


# --- commands of the help are accepted, and hints can be pasted ------------------------------------


@pytest.mark.parametrize(
    "arguments", [["get", "dom", "--home", "x y"], ["get", "--home=x y", "dom"]], ids=str
)
def test_global_options_may_follow_the_command(run: Run, arguments: list[str]) -> None:
    code, said = run(*arguments)
    assert code == 1
    assert "no admin key in x y" in said


def test_up_accepts_the_home_option(run: Run) -> None:
    Path("file").write_text("")
    code, said = run("up", "--home", "file", "--port", "0")
    assert code == 1
    assert "file" in said
    assert "No such option" not in said


def test_arguments_after_two_dashes_are_text(run: Run) -> None:
    with server(b'{"message": "none"}', 404) as url:
        code, said = run("--server", url, "classify", "--key", "k", "--", "topic", "--home")
    assert (code, said) == (1, "error: none (HTTP 404)\n")


def test_hints_quote_paths(run: Run) -> None:
    home = Path("my home")
    (home / "secrets").mkdir(parents=True)
    (home / "secrets" / "tenant-acme").write_text("old\n")
    with server(b"{}", 401) as url:
        (home / "url").write_text(url)
        code, said = run("--home", str(home), "--admin-key", "k", "models", "--tenant", "acme")
    assert code == 1
    assert "remove 'my home/secrets/tenant-acme'" in said
    assert "hmi delete 'a b' NAME" in run("delete", "a b")[1]


# --- a part that failed is a failure --------------------------------------------------------------

FAILED = {"model": "tone", "error": {"message": "not loaded"}}
ANSWERED = {"model": "topic", "data": [{"index": 0, "label": "a", "probs": [1.0]}]}


@pytest.mark.parametrize("output", [[], ["-o", "json"], ["-o", "yaml"]], ids=str)
def test_a_fan_out_with_a_model_that_failed_exits_with_1(run: Run, output: list[str]) -> None:
    for models, expected in (([ANSWERED], 0), ([ANSWERED, FAILED], 1)):
        with server(json.dumps({"models": models}).encode()) as url:
            code, _ = run(
                "--server", url, "classify", "--models", "topic,tone", "text", "--key", "k", *output
            )
        assert code == expected


def test_yaml_output_is_read_back_unchanged() -> None:
    values = [
        "y",
        "no",
        "1e3",
        "0o17",
        "1_0",
        "2026-01-01",
        "~",
        "",
        ".inf",
        "<<",
        "plain",
        "a: b",
        "é",
        "two\nlines",
        "1:30",
    ]
    assert read_documents(dump_yaml(values).encode()) == [values]
