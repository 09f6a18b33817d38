"""Progress is reported now and then, and never delays training."""

import io
import json
from dataclasses import dataclass, field

import httpx

from hmi_api.internal.runs import RunFailure, RunProgress, RunResult
from hmi_api.internal.trainer_client import TrainerClient
from hmi_api.security.bearer import TokenSource
from hmi_runtime.training.report import ControlPlaneReporter, LineReporter

RESULT = RunResult(artifacts=[], base_digest="sha256:b")


@dataclass
class ControlPlane:
    """Answers with ``status``, 0 for no answer at all."""

    status: int = 200
    now: float = 0.0
    seen: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        if self.status == 0:
            raise httpx.ConnectError("refused")
        return httpx.Response(self.status)

    def reporter(self) -> ControlPlaneReporter:
        transport = httpx.MockTransport(self)
        client = TrainerClient("http://control-plane", TokenSource("token"), "r1", transport=transport)
        return ControlPlaneReporter(client, clock=lambda: self.now)


def step(number: int) -> RunProgress:
    return RunProgress(stage="training", step=number, total=9)


def test_progress_goes_out_at_most_once_a_second() -> None:
    plane = ControlPlane()
    reports = plane.reporter()
    for number in range(30):
        reports.progress(step(number))
        plane.now += 0.125
    assert [json.loads(request.content)["step"] for request in plane.seen] == [0, 8, 16, 24]


def test_progress_never_waits_for_a_control_plane_that_is_away() -> None:
    plane = ControlPlane(status=0)
    reports = plane.reporter()
    for number in range(600):
        reports.progress(step(number))
        plane.now += 0.1
    assert len(plane.seen) < 10


def test_refused_progress_does_not_end_the_run() -> None:
    plane = ControlPlane(status=409)
    reports = plane.reporter()
    for number in range(3):
        reports.progress(step(number))
        plane.now += 1.0
    assert len(plane.seen) == 3


def test_lines_are_json() -> None:
    stream = io.StringIO()
    lines = LineReporter(stream)
    lines.progress(step(3))
    lines.complete(RESULT)
    lines.fail(RunFailure(reason="CorpusEmpty", message="none"))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["progress", "complete", "fail"]
    assert events[0]["step"] == 3
    assert events[2]["reason"] == "CorpusEmpty"
