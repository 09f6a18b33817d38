"""Reports reach the control plane however often it is away, and never hold training up."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import pytest

from hmi_api.errors import InvalidInput, NotReady
from hmi_api.wire import RunFailure, RunProgress, RunResult
from hmi_runtime.training.report import ControlPlaneReporter, LineReporter, RunRefused

RESULT = RunResult(artifacts=[], base_digest="sha256:b")


@dataclass
class Time:
    """A clock that sleeping alone moves."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@dataclass
class ControlPlane:
    """Answers with the given statuses in turn, 0 for no answer at all; then always 200."""

    statuses: list[int]
    seen: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 0:
            raise httpx.ConnectError("refused")
        return httpx.Response(status)


def reporter(handler: Callable[[httpx.Request], httpx.Response], time: Time) -> ControlPlaneReporter:
    client = httpx.Client(transport=httpx.MockTransport(handler), base_url="http://control-plane")
    return ControlPlaneReporter(client, "r1", patience=100.0, sleep=time.sleep, clock=time.clock)


def step(number: int) -> RunProgress:
    return RunProgress(stage="training", step=number, total=9)


def test_a_result_is_posted_until_it_is_accepted() -> None:
    plane, time = ControlPlane([0, 503, 429, 500]), Time()
    reporter(plane, time).complete(RESULT)
    assert [request.url.path for request in plane.seen] == ["/internal/v1/runs/r1/complete"] * 5
    assert json.loads(plane.seen[-1].content)["baseDigest"] == "sha256:b"
    assert time.slept == sorted(time.slept)


def test_patience_ends() -> None:
    time = Time()
    with pytest.raises(NotReady) as caught:
        reporter(ControlPlane([0] * 1000), time).fail(RunFailure(reason="CorpusEmpty", message="none"))
    assert caught.value.reason == "ControlPlaneAway"
    assert 50 < time.now <= 100


@pytest.mark.parametrize("status", [401, 404, 409, 422])
def test_a_refusal_is_final(status: int) -> None:
    plane, time = ControlPlane([status]), Time()
    with pytest.raises(RunRefused):
        reporter(plane, time).complete(RESULT)
    assert len(plane.seen) == 1


def test_a_result_that_does_not_fit_is_refused_with_the_control_planes_reason() -> None:
    with pytest.raises(InvalidInput) as caught:
        reporter(ControlPlane([400]), Time()).complete(RESULT)
    assert caught.value.reason == "ResultRefused"


def test_progress_goes_out_at_most_once_a_second() -> None:
    plane, time = ControlPlane([]), Time()
    reports = reporter(plane, time)
    for number in range(30):
        reports.progress(step(number))
        time.now += 0.125
    assert [json.loads(request.content)["step"] for request in plane.seen] == [0, 8, 16, 24]


def test_progress_never_waits_for_a_control_plane_that_is_away() -> None:
    plane, time = ControlPlane([0] * 100), Time()
    reports = reporter(plane, time)
    for number in range(600):
        reports.progress(step(number))
        time.now += 0.1
    assert not time.slept
    assert len(plane.seen) < 10


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
