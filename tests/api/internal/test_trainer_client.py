"""A trainer's requests are retried while the control plane is down, and its refusals are final."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from fake_time import FakeTime, install_fake_time

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.errors import HmiError, InvalidInput, NotReady, error_body
from hmi_api.internal.client import Refused
from hmi_api.internal.runs import ArtifactCommit, RunFailure, RunProgress, RunResult
from hmi_api.internal.trainer_client import TrainerClient
from hmi_api.security.bearer import TokenSource

RESULT = RunResult(artifacts=[], base_digest="sha256:b")
FAILURE = RunFailure(reason="CorpusEmpty", message="none")
REF = ArtifactRef(kind=ArtifactKind.ADAPTER, uri="adapter/1", digest="sha256:1", bytes=9)


@pytest.fixture(autouse=True)
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    return install_fake_time(monkeypatch)


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


def client(handler: Callable[[httpx.Request], httpx.Response]) -> TrainerClient:
    return TrainerClient(
        "http://control-plane",
        TokenSource("token"),
        "r1",
        report_patience=100.0,
        transfer_patience=10.0,
        transport=httpx.MockTransport(handler),
    )


def answering(*answers: httpx.Response) -> Callable[[httpx.Request], httpx.Response]:
    left = list(answers)
    return lambda request: left.pop(0) if left else httpx.Response(200)


def refusal(status: int, code: str, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=error_body("So.", "some_error", code=code), headers=headers)


def test_a_result_is_posted_until_it_is_accepted(time: FakeTime) -> None:
    plane = ControlPlane([0, 503, 429, 500])
    client(plane).complete_run(RESULT)
    assert [request.url.path for request in plane.seen] == ["/internal/v1/runs/r1/complete"] * 5
    assert {request.headers["Authorization"] for request in plane.seen} == {"Bearer token"}
    assert json.loads(plane.seen[-1].content)["baseDigest"] == "sha256:b"
    assert time.slept == [0.5, 1.0, 2.0, 4.0]


def test_retries_end_after_the_time_limit(time: FakeTime) -> None:
    with pytest.raises(NotReady) as caught:
        client(ControlPlane([0] * 1000)).fail_run(FAILURE)
    assert caught.value.reason == "ControlPlaneUnavailable"
    assert 50 < time.now <= 100
    assert max(time.slept) == 30.0


def test_transfers_have_their_own_time_limit(time: FakeTime) -> None:
    with pytest.raises(NotReady, match="ControlPlaneUnavailable"):
        client(ControlPlane([0] * 1000)).commit_artifact(ArtifactCommit(manifest="{}"))
    assert time.slept == [0.5, 1.0, 2.0, 4.0]


def test_a_wait_follows_retry_after(time: FakeTime) -> None:
    busy = [refusal(503, "Later", **{"Retry-After": seconds}) for seconds in ("7", "900", "soon")]
    client(answering(*busy)).complete_run(RESULT)
    assert time.slept == [7.0, 30.0, 2.0]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_final(status: int, time: FakeTime) -> None:
    plane = ControlPlane([status])
    with pytest.raises(HmiError, match="TokenRefused") as caught:
        client(plane).complete_run(RESULT)
    assert not isinstance(caught.value, InvalidInput | NotReady)
    assert (len(plane.seen), time.slept) == (1, [])


@pytest.mark.parametrize("status", [400, 404, 409, 413, 415, 422])
def test_a_refusal_is_final(status: int, time: FakeTime) -> None:
    plane = ControlPlane([status])
    with pytest.raises(Refused) as caught:
        client(plane).complete_run(RESULT)
    assert (caught.value.status, caught.value.reason) == (status, "RequestRefused")
    assert (len(plane.seen), time.slept) == (1, [])


def test_a_refusal_has_the_control_planes_reason() -> None:
    with pytest.raises(InvalidInput) as caught:
        client(answering(refusal(422, "InvalidField"))).complete_run(RESULT)
    assert (caught.value.reason, caught.value.message) == ("InvalidField", "So.")


def test_a_lost_write_race_is_sent_again(time: FakeTime) -> None:
    client(answering(refusal(409, "ConcurrentWrite"))).complete_run(RESULT)
    assert len(time.slept) == 1
    with pytest.raises(InvalidInput, match=r"RunFinished: So\."):
        client(answering(refusal(409, "RunFinished"))).complete_run(RESULT)


def test_progress_is_not_repeated(time: FakeTime) -> None:
    plane = ControlPlane([0])
    with pytest.raises(NotReady):
        client(plane).report_progress(RunProgress(stage="training", step=1, total=9))
    assert (len(plane.seen), time.slept) == (1, [])


def test_an_upload_sends_the_whole_file_again(tmp_path: Path) -> None:
    plane = ControlPlane([503])
    (tmp_path / "file").write_bytes(b"content")
    client(plane).upload_file("sha256:1", tmp_path / "file")
    assert [request.read() for request in plane.seen] == [b"content"] * 2
    assert {request.headers["Content-Length"] for request in plane.seen} == {"7"}


class Pieces(httpx.SyncByteStream):
    """Some bytes, then a connection that breaks."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces
        raise httpx.ReadError("the connection broke")


def test_a_download_continues_after_its_last_byte(time: FakeTime) -> None:
    ranges: list[str | None] = []
    answers = [
        httpx.Response(200, stream=Pieces(b"ab", b"c")),
        httpx.Response(206, stream=Pieces()),
        httpx.Response(206, stream=Pieces(b"d")),
        httpx.Response(416),
    ]

    def handler(request: httpx.Request) -> httpx.Response:
        ranges.append(request.headers.get("range"))
        return answers.pop(0)

    assert b"".join(client(handler).stream_file(REF, "a.json")) == b"abcd"
    assert ranges == [None, "bytes=3-", "bytes=3-", "bytes=4-"]
    assert time.slept == [0.5]  # only where not one byte had arrived


def test_a_download_without_any_byte_ends_with_the_patience(time: FakeTime) -> None:
    with pytest.raises(NotReady):
        client(lambda _: httpx.Response(200, stream=Pieces())).read_file(REF, "a.json")
    assert time.now <= 10.0


def test_a_missing_file_raises_file_not_found() -> None:
    with pytest.raises(FileNotFoundError):
        client(answering(refusal(404, "ArtifactMissing"))).read_file(REF, "a.json")
