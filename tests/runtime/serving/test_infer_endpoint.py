"""The endpoint of inference: what it answers and refuses, and how results reach its event loop."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from hmi_api.internal.inference import InferReply, InferRow, RowResult
from hmi_api.security.request_body import BodyLimit, RequestBodyMiddleware
from hmi_runtime.server.app import body_error, build_app
from hmi_runtime.server.infer import INFER_PATH, Deliveries
from hmi_runtime.server.metrics import RuntimeMetrics

ROW = {"adapter": "acme/topic", "text": "loose spokes"}


class EchoPipeline:
    """Answers each row with its adapter's name, from another thread."""

    def __init__(self) -> None:
        self.tenants: list[str | None] = []

    def submit(self, rows: Sequence[InferRow], *, tenant_id: str | None = None) -> Future[list[RowResult]]:
        self.tenants.append(tenant_id)
        future: Future[list[RowResult]] = Future()
        results = [RowResult(version=1, labels=[row.adapter], scores=[1.0]) for row in rows]
        threading.Thread(target=future.set_result, args=(results,)).start()
        return future


@pytest.fixture
def pipeline() -> EchoPipeline:
    return EchoPipeline()


@pytest.fixture
def client(pipeline: EchoPipeline) -> Any:
    loader: Any = SimpleNamespace(pipeline=pipeline)
    control: Any = SimpleNamespace(ready=True)
    app = build_app(loader, control, RuntimeMetrics(), metrics_here=False)
    app.add_middleware(RequestBodyMiddleware, default=BodyLimit(1000), refuse=body_error)
    with TestClient(app) as client:
        yield client


def test_every_row_has_its_result(client: TestClient, pipeline: EchoPipeline) -> None:
    rows = [{**ROW, "adapter": f"acme/{number}"} for number in range(5)]
    response = client.post(INFER_PATH, json={"requestId": "r", "tenantId": "t-1", "rows": rows})
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    reply = InferReply.model_validate(response.json())
    assert [result.labels for result in reply.results] == [[row["adapter"]] for row in rows]
    assert pipeline.tenants == ["t-1"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{", "body: Invalid JSON"),
        ('{"requestId": "r", "rows": [{"text": "x"}]}', "body.rows.0.adapter: Field required"),
        ('{"requestId": "r", "rows": [], "more": 1}', "body.more: Extra inputs"),
    ],
)
def test_a_body_that_is_not_a_request_is_refused(
    client: TestClient, pipeline: EchoPipeline, body: str, message: str
) -> None:
    response = client.post(INFER_PATH, content=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(message)
    assert not pipeline.tenants


def test_a_body_that_is_too_large_is_refused(client: TestClient, pipeline: EchoPipeline) -> None:
    response = client.post(INFER_PATH, content=b" " * 1001)
    assert (response.status_code, response.json()["error"]["type"]) == (413, "invalid_request_error")
    assert not pipeline.tenants


def test_other_requests_pass(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get(INFER_PATH).status_code == 404


def test_results_that_arrive_together_wake_the_loop_once() -> None:
    async def run() -> int:
        loop, deliveries = asyncio.get_running_loop(), Deliveries()
        futures: list[Future[int]] = [Future() for _ in range(50)]
        waiting = [deliveries.wait_for(future) for future in futures]
        woken = []
        wake = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *given: woken.append(wake(*given))  # type: ignore
        for number, future in enumerate(futures):  # the loop's own thread, so that it cannot run between two
            future.set_result(number)
        assert await asyncio.gather(*waiting) == list(range(50))
        return len(woken)

    assert asyncio.run(run()) == 1


def test_results_of_many_threads_all_arrive() -> None:
    async def run() -> None:
        deliveries = Deliveries()
        futures: list[Future[int]] = [Future() for _ in range(400)]
        waiting = [deliveries.wait_for(future) for future in futures]

        def answer(first: int) -> None:
            for number in range(first, 400, 4):
                futures[number].set_result(number)

        threads = [threading.Thread(target=answer, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        assert await asyncio.wait_for(asyncio.gather(*waiting), 60) == list(range(400))
        for thread in threads:
            thread.join()

    asyncio.run(run())


def test_cancelling_cancels_what_is_waited_for() -> None:
    async def run() -> Future[int]:
        future: Future[int] = Future()
        waiting = Deliveries().wait_for(future)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return future

    assert asyncio.run(run()).cancelled()


def test_a_future_that_was_cancelled_or_failed_says_so() -> None:
    async def run() -> None:
        deliveries = Deliveries()
        cancelled: Future[int] = Future()
        failed: Future[int] = Future()
        waiting = [deliveries.wait_for(cancelled), deliveries.wait_for(failed)]
        cancelled.cancel()
        failed.set_exception(ValueError("no"))
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError | CancelledError)
        assert isinstance(found[1], ValueError)

    asyncio.run(run())


def test_a_result_after_the_loop_has_closed_is_dropped() -> None:
    future: Future[int] = Future()

    async def run() -> None:
        Deliveries().wait_for(future)

    asyncio.run(run())
    future.set_result(1)
    assert future.result() == 1
