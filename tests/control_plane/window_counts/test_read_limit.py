"""Reads of window counts at once: one of each tenant, two of all, until the response was sent."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from hmi_api.errors import NotReady
from hmi_control_plane.window_counts import read_limit as module
from hmi_control_plane.window_counts.read_limit import ReadLimit, ReleasingResponse

LIMIT_S = 60.0


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def going_on(threads: ThreadPoolExecutor) -> Callable[[ReadLimit, str], Any]:
    """Start a read that is computed until the returned function is called, which returns the response."""

    def start(limit: ReadLimit, tenant: str) -> Callable[[], ReleasingResponse]:
        begun, go = threading.Event(), threading.Event()

        def compute() -> bytes:
            begun.set()
            assert go.wait(LIMIT_S)
            return b"{}"

        future: Future[ReleasingResponse] = threads.submit(limit.respond, tenant, compute)
        assert begun.wait(LIMIT_S)

        def finish() -> ReleasingResponse:
            go.set()
            return future.result(LIMIT_S)

        return finish

    return start


async def send(response: ReleasingResponse, sent: Callable[[Any], None] = lambda _: None) -> None:
    async def send_one(message: Any) -> None:
        sent(message)

    async def receive() -> Any:
        raise AssertionError("a server of ASGI 2.4 raises when the client is gone")

    await response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send_one)


def test_two_reads_are_computed_at_once(going_on: Any) -> None:
    limit = ReadLimit()
    finish = [going_on(limit, tenant) for tenant in ("acme", "bolt")]
    with pytest.raises(NotReady, match="WindowsBeingRead"):
        limit.respond("cove", lambda: b"{}")
    finish[0]()
    assert limit.respond("cove", lambda: b"{}")
    finish[1]()


@pytest.mark.anyio
async def test_a_tenants_next_read_waits_until_the_response_was_sent() -> None:
    limit = ReadLimit()
    content = b"x" * (3 * module._CHUNK_BYTES + 1)
    response = limit.respond("acme", lambda: content)
    messages: list[Any] = []

    def sent(message: Any) -> None:
        messages.append(message)
        with pytest.raises(NotReady, match="WindowsBeingRead"):
            limit.respond("acme", lambda: b"{}")

    await send(response, sent)
    bodies = [one["body"] for one in messages if one["type"] == "http.response.body"]
    assert b"".join(bodies) == content
    assert max(map(len, bodies)) == module._CHUNK_BYTES
    assert limit.respond("acme", lambda: b"{}")


@pytest.mark.anyio
async def test_a_tenant_may_read_again_after_a_failure() -> None:
    limit = ReadLimit()
    with pytest.raises(ZeroDivisionError):
        limit.respond("acme", lambda: bytes([1 // 0]))
    response = limit.respond("acme", lambda: b"{}")

    def gone(message: Any) -> None:
        raise OSError

    with pytest.raises(Exception):  # noqa: B017, PT011 -- Starlette's ClientDisconnect
        await send(response, gone)
    assert limit.respond("acme", lambda: b"{}")


def test_a_run_is_refused_while_another_run_of_its_tenant_reads(
    traffic: Any, monkeypatch: pytest.MonkeyPatch, threads: ThreadPoolExecutor
) -> None:
    traffic.sent({"acme": {1: 2}})
    run = traffic.run()
    begun, go = threading.Event(), threading.Event()
    compute = module.ReadLimit._slot

    def slow(self: ReadLimit) -> Any:
        begun.set()
        assert go.wait(LIMIT_S)
        return compute(self)

    monkeypatch.setattr(module.ReadLimit, "_slot", slow)
    first = threads.submit(traffic.windows, run)
    assert begun.wait(LIMIT_S)
    refused = traffic.cluster.client.get(
        f"/internal/v1/runs/{run}/window-counts",
        headers={"Authorization": "Bearer internal-token-of-the-tests"},
    )
    go.set()
    assert refused.status_code == 503
    assert (refused.json()["error"]["code"], refused.headers["Retry-After"]) == ("WindowsBeingRead", "1")
    assert first.result(LIMIT_S) == traffic.windows(run) == {1: 2}
