"""Progress is shown as bars on a terminal, else as lines."""

from io import StringIO
from typing import Any

import httpx
import pytest
from rich.console import Console

from hmi_cli.api import ResourceApi
from hmi_cli.client import Client
from hmi_cli.demo.progress import is_settled, open_progress, wait_until_settled
from hmi_cli.errors import CliError


def item(
    name: str, phase: str, *, ready: bool = False, progress: str | None = None, reason: str = "x"
) -> dict[str, Any]:
    """Return a Domain in a phase."""
    conditions = [{"type": "Ready", "status": str(ready), "reason": reason, "message": ""}]
    return {
        "kind": "Domain",
        "metadata": {"name": name, "namespace": "n", "generation": 1},
        "status": {"phase": phase, "progress": progress, "conditions": conditions, "observedGeneration": 1},
    }


STATES = [
    [item("a", "Pending"), item("b", "Waiting")],
    [item("a", "Training", progress="3/10"), item("b", "Waiting")],
    [item("a", "Ready", ready=True), item("b", "Failed", reason="CorpusEmpty")],
]


def shown(*, terminal: bool) -> str:
    """Show all states and return the output."""
    console = Console(file=StringIO(), force_terminal=terminal, width=120)
    with open_progress(console) as show:
        for state in STATES:
            show(state)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_lines_say_what_changed_once() -> None:
    text = shown(terminal=False)
    assert text.count("Domain n/b: Waiting") == 1
    assert "Domain n/a: Training 3/10" in text
    assert "Domain n/b: Failed (CorpusEmpty)" in text
    assert "\x1b" not in text


def test_bars_end_ready() -> None:
    text = shown(terminal=True)
    assert "Domain n/a" in text
    assert "Ready" in text
    assert "Failed (CorpusEmpty)" in text


def test_a_status_of_an_older_spec_is_not_settled() -> None:
    failed = item("a", "Failed")
    assert is_settled(failed)
    failed["metadata"]["generation"] = 2
    assert not is_settled(failed)
    assert not is_settled(item("a", "Training"))
    assert is_settled(item("a", "Ready", ready=True))


@pytest.mark.parametrize("alive", [True, False])
def test_a_request_without_an_answer_is_sent_again_while_the_system_runs(
    alive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hmi_cli.demo.progress.POLL_S", 0.0)
    late = iter([True])

    def answer(request: httpx.Request) -> httpx.Response:
        if next(late, False):
            raise httpx.ReadTimeout("late", request=request)
        return httpx.Response(200, json={"items": [item("a", "Ready", ready=True)]})

    seen: list[Any] = []
    with Client("http://127.0.0.1:1", "key", transport=httpx.MockTransport(answer)) as client:
        api = ResourceApi(client)
        if not alive:
            with pytest.raises(CliError, match="took longer"):
                wait_until_settled(api, seen.append, limit_s=60, alive=lambda: alive)
            return
        assert wait_until_settled(api, seen.append, limit_s=60, alive=lambda: alive)
    assert len(seen) == 1
