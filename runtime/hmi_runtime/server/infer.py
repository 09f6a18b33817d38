"""The endpoint of inference, which every request passes: ``POST /internal/v1/infer``.

It is ASGI middleware before FastAPI, whose routing, dependencies and encoding take several times as long as
the validation and encoding by the models alone.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from hmi_api.internal.inference import InferReply, InferRequest
from hmi_runtime.server.metrics import RuntimeMetrics
from hmi_runtime.serving.pipeline import Pipeline

INFER_PATH = "/internal/v1/infer"
T = TypeVar("T")


class Deliveries:
    """Hands the results of other threads to an event loop, as many at a wake-up as are there.

    A batch gives many requests their results at once. A wake-up for each, as ``asyncio.wrap_future`` does it,
    takes longer than the rest of what the loop does with a result.
    """

    def __init__(self) -> None:
        self._ready: deque[Callable[[], None]] = deque()
        self._scheduled = False

    def wait_for(self, future: Future[T]) -> "asyncio.Future[T]":
        """Return a future of the running loop with the result of ``future``; cancelling it cancels both."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[T] = loop.create_future()
        waiting.add_done_callback(lambda done: future.cancel() if done.cancelled() else None)
        future.add_done_callback(partial(self._put, loop, waiting))
        return waiting

    def _put(self, loop: asyncio.AbstractEventLoop, waiting: "asyncio.Future[T]", done: Future[T]) -> None:
        """Called by any thread. Two that see the flag unset both wake the loop, which does no harm."""
        self._ready.append(partial(_settle, waiting, done))
        if not self._scheduled and not loop.is_closed():
            self._scheduled = True
            loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False  # before the queue is read: what comes later wakes the loop again
        while self._ready:
            self._ready.popleft()()


def _settle(waiting: "asyncio.Future[T]", done: Future[T]) -> None:
    if waiting.done():
        return
    if done.cancelled():
        waiting.cancel()
    elif (error := done.exception()) is not None:
        waiting.set_exception(error)
    else:
        waiting.set_result(done.result())


class InferEndpoint:
    """Answers inference requests with one result for each row, and passes on all others.

    ``on_error`` makes the response for a body that is refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        pipeline: Pipeline,
        metrics: RuntimeMetrics,
        on_error: Callable[[HTTPException | RequestValidationError], Response],
    ) -> None:
        self._app = app
        self._pipeline = pipeline
        self._answered = metrics.requests.labels("infer", "200")
        self._seconds = metrics.request_seconds
        self._on_error = on_error
        self._deliveries = Deliveries()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request if it is for inference."""
        if scope["type"] != "http" or scope["path"] != INFER_PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        try:
            request = InferRequest.model_validate_json(await Request(scope, receive).body())
        except ClientDisconnect:
            return
        except HTTPException as error:
            await self._on_error(error)(scope, receive, send)
            return
        except ValidationError as error:
            refused = RequestValidationError(
                [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
            )
            await self._on_error(refused)(scope, receive, send)
            return
        submitted = self._pipeline.submit(request.rows, tenant_id=request.tenant_id)
        reply = InferReply(results=await self._deliveries.wait_for(submitted))
        self._answered.inc()
        self._seconds.observe(time.monotonic() - started)
        body = reply.model_dump_json(by_alias=True, exclude_none=True)
        await Response(body, media_type="application/json")(scope, receive, send)
