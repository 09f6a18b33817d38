"""Reports reach the control plane however often it is away, and never hold training up."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import pytest

from hmi_api.errors import InvalidInput, NotReady, error_body
from hmi_api.internal.runs import RunFailure, RunProgress, RunResult
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


@pytest.mark.parametrize("status", [401, 403, 404, 409])
def test_a_refusal_is_final(status: int) -> None:
    plane, time = ControlPlane([status]), Time()
    with pytest.raises(RunRefused):
        reporter(plane, time).complete(RESULT)
    assert len(plane.seen) == 1


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_a_result_that_does_not_fit_is_refused_at_once(status: int) -> None:
    plane, time = ControlPlane([status]), Time()
    with pytest.raises(InvalidInput) as caught:
        reporter(plane, time).complete(RESULT)
    assert caught.value.reason == "ResultRefused"
    assert (len(plane.seen), time.slept) == (1, [])


def answering(status: int, code: str) -> Callable[[httpx.Request], httpx.Response]:
    answers = [httpx.Response(status, json=error_body("So.", "some_error", code=code))]
    return lambda request: answers.pop(0) if answers else httpx.Response(200)


def test_a_refused_result_carries_the_control_planes_reason() -> None:
    with pytest.raises(InvalidInput) as caught:
        reporter(answering(422, "InvalidField"), Time()).complete(RESULT)
    assert (caught.value.reason, caught.value.message) == ("InvalidField", "So.")


def test_a_write_that_lost_a_race_is_sent_again() -> None:
    time = Time()
    reporter(answering(409, "ConcurrentWrite"), time).complete(RESULT)
    assert len(time.slept) == 1
    with pytest.raises(RunRefused, match=r"So\."):
        reporter(answering(409, "RunFinished"), Time()).complete(RESULT)


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
