"""The program as Jobs run it: the run comes from the control plane, and its end goes there."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hmi_api.internal.runs import DomainRunSpec, RunState, RunView
from hmi_runtime.training.cli import main


class Plane:
    """A control plane that knows one run and writes down what it is told."""

    def __init__(self, run: RunView) -> None:
        self.run = run
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.tokens: set[str | None] = set()
        plane = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                plane.tokens.add(self.headers["Authorization"])
                self._answer(plane.run.model_dump_json(by_alias=True).encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                plane.posts.append((self.path.rpartition("/")[2], json.loads(body)))
                self._answer(b"{}")

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                """Keep test output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def plane(
    base_folder: Path, sentences: list[str], write_lines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Plane]:
    corpus = write_lines("corpus.jsonl", [{"text": sentence} for sentence in sentences])
    spec = {
        "baseModel": {"uri": str(base_folder)},
        "corpus": [{"uri": str(corpus)}],
        "training": {"steps": 2, "batchSize": 8},
        "bridge": {"heads": 0},
    }
    run = DomainRunSpec.model_validate({"namespace": "bikes", "name": "workshop", "spec": spec})
    view = RunView(id="r1", uid="u", spec_digest="d", attempt=0, state=RunState.PENDING, spec=run)
    made = Plane(view)
    environment = {
        "HMI_CONTROL_PLANE_URL": made.url,
        "HMI_INTERNAL_TOKEN": "token-of-the-tests",
        "HMI_RUN_ID": "r1",
        "HMI_WORK_DIR": str(tmp_path / "work"),
        "HMI_ARTIFACTS": str(tmp_path / "artifacts"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_a_run_is_fetched_done_and_handed_in(plane: Plane) -> None:
    assert main(["domain"]) == 0
    assert plane.tokens == {"Bearer token-of-the-tests"}
    actions = [action for action, _ in plane.posts]
    assert actions[0] == "progress"
    assert actions[-1] == "complete"
    assert len(plane.posts[-1][1]["artifacts"]) == 2


def test_a_failure_is_handed_in_with_its_reason(plane: Plane, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("")
    assert main(["domain"]) == 1
    action, body = plane.posts[-1]
    assert (action, body["reason"]) == ("fail", "CorpusEmpty")


def test_a_run_of_the_other_kind_is_wrong_usage(plane: Plane) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["adapter"])
    assert caught.value.code == 2
    assert plane.posts == []


def test_an_environment_that_is_not_complete_is_wrong_usage(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HMI_RUN_ID")
    with pytest.raises(SystemExit) as caught:
        main(["domain"])
    assert caught.value.code == 2
    assert "HMI_RUN_ID" in capsys.readouterr().err
