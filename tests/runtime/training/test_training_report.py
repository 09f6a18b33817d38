"""Progress is reported at most once a second, and never delays training."""

import io
import json
from dataclasses import dataclass, field

from fake_control_plane import TOKEN, FakeControlPlane

from hmi_api.internal.runs import RunFailure, RunProgress, RunResult
from hmi_api.internal.trainer_client import TrainerClient
from hmi_api.security.bearer import TokenSource
from hmi_runtime.training.report import ControlPlaneReporter, LineReporter

RESULT = RunResult(artifacts=[], base_digest="sha256:b")


@dataclass
class Reporting:
    """A reporter of a run, the fake control plane, and a clock that the test moves."""

    plane: FakeControlPlane = field(default_factory=FakeControlPlane)
    now: float = 0.0

    def reporter(self) -> ControlPlaneReporter:
        transport = self.plane.transport()
        client = TrainerClient("http://control-plane", TokenSource(TOKEN), "00ff", transport=transport)
        return ControlPlaneReporter(client, clock=lambda: self.now)


def step(number: int) -> RunProgress:
    return RunProgress(stage="training", step=number, total=9)


def test_progress_is_sent_at_most_once_a_second() -> None:
    reporting = Reporting()
    reports = reporting.reporter()
    for number in range(30):
        reports.progress(step(number))
        reporting.now += 0.125
    sent = reporting.plane.bodies("POST /runs/00ff/progress", RunProgress)
    assert [progress.step for progress in sent] == [0, 8, 16, 24]


def test_progress_never_waits_for_a_control_plane_that_is_away() -> None:
    reporting = Reporting()
    reporting.plane.drop(times=1000)
    reports = reporting.reporter()
    for number in range(600):
        reports.progress(step(number))
        reporting.now += 0.1
    assert 1 < len(reporting.plane.requests) < 10


def test_refused_progress_does_not_end_the_run() -> None:
    reporting = Reporting()  # has no such run
    reports = reporting.reporter()
    for number in range(3):
        reports.progress(step(number))
        reporting.now += 1.0
    assert len(reporting.plane.requests) == 3


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
