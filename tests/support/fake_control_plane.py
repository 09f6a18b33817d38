"""The one fake of the control plane's internal API, for tests of the operator, the runtime and the trainer.

It keeps everything in memory (``catalog``, ``runtimes``), notes every request, and fails on request. Use it

- as ``client()``, a real ``ControlPlaneClient`` whose requests need no connection,
- as ``transport()`` of a real ``TrainerClient``,
- over HTTP: ``with serving(plane.app) as url`` (of ``serving.py``).

``tests/contract`` runs one suite against it and against the real control plane.
"""

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import httpx
from fake_routes import ROUTES, Call, Request
from fake_runtimes import FakeRuntimes
from fake_window_counts import FakeWindowCounts
from pydantic import BaseModel, ValidationError

from hmi_api.errors import error_body
from hmi_api.internal.catalog import ClusterRegistration, RegisteredCluster
from hmi_api.internal.client import ONE_ATTEMPT, PREFIX, ControlPlaneClient, Refused, check_status
from hmi_api.internal.retry import RetryPolicy, Unavailable
from hmi_api.internal.runs import RUN_ID

TOKEN = "internal-token-of-the-tests"
_NAME = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_PATTERNS = {"namespace": _NAME, "name": _NAME, "tenant": _NAME, "run": RUN_ID}
_POLL_SECONDS = 0.01
_LONGEST_WAIT = 0.5
"""Of a long poll in seconds: short, so that a test's server ends soon."""

_KINDS = {
    404: "not_found_error",
    409: "conflict_error",
    401: "authentication_error",
}


@dataclass(frozen=True)
class Answer:
    """Status, body and headers of an answer; status 0 for a connection that is dropped."""

    status: int
    body: bytes = b""


@dataclass
class Fault:
    """A fault for the next ``left`` requests that match ``pattern``.

    ``action`` is called first; ``answer`` replaces the real response, after ``until`` is set.
    """

    pattern: re.Pattern[str]
    left: float
    answer: Answer | None = None
    until: threading.Event | None = None
    action: Callable[[Request], None] | None = None


class FakeControlPlane:
    """The internal API in memory."""

    def __init__(self) -> None:
        self.runtimes = FakeRuntimes()
        self.catalog = self.runtimes.catalog
        self.windows = FakeWindowCounts(self.catalog)
        self.cluster: str | None = None
        """The uid of the cluster that has claimed the catalog; None lets any cluster claim it."""
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        """Locked while a request is handled: a test that locks it makes several changes at once."""
        self._claimed_at, self._inherited = 0.0, False
        self._faults: list[Fault] = []

    # --- how it is reached ----------------------------------------------------------------------------

    def client(self, retry: RetryPolicy = ONE_ATTEMPT) -> ControlPlaneClient:
        """Return a real client whose requests come here without a connection."""
        return _ClientInMemory(self, retry)

    def transport(self) -> httpx.MockTransport:
        """Return the transport for a ``TrainerClient``."""

        def send(request: httpx.Request) -> httpx.Response:
            token = request.headers.get("Authorization")
            answer = asyncio.run(self.answer(request.method, str(request.url), request.read(), token))
            if answer.status == 0:
                raise httpx.RemoteProtocolError("the connection was dropped")
            return httpx.Response(answer.status, content=answer.body)

        return httpx.MockTransport(send)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request of an ASGI server."""
        headers = dict(scope["headers"])
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        url = f"{scope['path']}?{scope['query_string'].decode()}"
        token = headers.get(b"authorization", b"").decode()
        answer = await self.answer(scope["method"], url, body, token)
        size = str(len(answer.body)) if answer.status else "1"  # a body that never comes: the server hangs up
        start = {"type": "http.response.start", "status": answer.status or 200}
        await send(start | {"headers": [(b"content-length", size.encode())]})
        if answer.status:
            await send({"type": "http.response.body", "body": answer.body})

    # --- what tests do with it ------------------------------------------------------------------------

    def fail(self, status: int, reason: str = "Later", *, request: str = "", times: float = 1) -> Fault:
        """Answer the next requests with an error; ``request`` is the beginning of ``METHOD /path``."""
        answer = Answer(status, _error(status, reason, "The test wants it so."))
        return self._add(Fault(re.compile(request), times, answer))

    def drop(self, *, request: str = "", times: float = 1) -> Fault:
        """Drop the connections of the next requests, unanswered."""
        return self._add(Fault(re.compile(request), times, Answer(0)))

    def lose_answer(self, request: str = "") -> Fault:
        """Handle the next such request, and drop its connection before the answer."""
        return self._add(Fault(re.compile(request), 1, Answer(0), action=self._handle))

    def hold(self, request: str = "") -> threading.Event:
        """Handle the next such request at once, but keep its answer until the event is set."""
        event = threading.Event()
        self._add(Fault(re.compile(request), 1, until=event))
        return event

    def before(self, request: str, action: Callable[[Request], None]) -> None:
        """Do something in the moment before the next such request is handled."""
        self._add(Fault(re.compile(request), 1, action=action))

    def calls(self, *, since: int = 0) -> list[str]:
        """Return ``METHOD /path`` of the requests, without the first ``since``."""
        return [str(request) for request in self.requests[since:]]

    def bodies(self, request: str, type_: Any) -> list[Any]:
        """Return the bodies of the requests that match ``request`` whole."""
        found = [one for one in self.requests if re.fullmatch(request, str(one))]
        return [type_.model_validate_json(one.body) for one in found]

    def _add(self, fault: Fault) -> Fault:
        self._faults.append(fault)
        return fault

    # --- handling -------------------------------------------------------------------------------------

    async def answer(self, method: str, url: str, body: bytes, authorization: str | None) -> Answer:
        """Answer a request as the control plane would, unless a fault is due."""
        parts = urlsplit(url)
        token = (authorization or "").removeprefix("Bearer ")
        path = parts.path.removeprefix(PREFIX)
        request = Request(method, path, dict(parse_qsl(parts.query)), body, token)
        self.requests.append(request)
        due = (one for one in self._faults if one.left > 0 and one.pattern.match(str(request)))
        fault = next(due, None)
        if fault is None:
            return await self._answer(request)
        fault.left -= 1
        if fault.action is not None:
            fault.action(request)
        answer = fault.answer or await self._answer(request)
        # Tests set the event from any thread: polled, not awaited.
        while fault.until is not None and not fault.until.is_set():  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS / 10)
        return answer

    async def _answer(self, request: Request) -> Answer:
        if request.token != TOKEN:
            return Answer(401, _error(401, "Unauthorized", "The token is not known."))
        try:
            await self._wait_for_change(request)
            with self.lock:
                content = self._handle(request)
        except Refused as error:
            return Answer(error.status, _error(error.status, error.reason, error.message))
        except ValidationError as error:
            return Answer(422, _error(422, "InvalidField", str(error)))
        return Answer(200 if content else 204, content)

    async def _wait_for_change(self, request: Request) -> None:
        """Let a long poll wait for another revision of the desired state."""
        if not (found := re.fullmatch(r"GET /runtimes/([^/]+)/desired", str(request))):
            return
        until = time.monotonic() + min(float(request.query.get("wait", "0")), _LONGEST_WAIT)
        since = int(request.query.get("since", "0"))
        # Tests change what is desired from their own thread: polled, not awaited.
        while self.runtimes.require(found[1]).revision == since and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)

    def _handle(self, request: Request) -> bytes:
        for pattern, type_, handler in ROUTES:
            if found := pattern.fullmatch(str(request)):
                for name, text in found.groupdict().items():
                    if not re.fullmatch(_PATTERNS.get(name, ".*"), text):
                        raise Refused(422, "InvalidField", f"{name} should match {_PATTERNS[name]}.")
                body = [type_.model_validate_json(request.body)] if type_ else []
                content = handler(self, Call(request, **found.groupdict()), *body)
                return (
                    content.model_dump_json(by_alias=True).encode()
                    if isinstance(content, BaseModel)
                    else content or b""
                )
        raise Refused(404, "NotFound", f"There is no {request}.")

    def claim(self, wanted: ClusterRegistration) -> RegisteredCluster:
        """Claim the catalog for a cluster."""
        if self.cluster not in (None, wanted.uid):
            raise Refused(409, "OtherCluster", f"This catalog is in use by cluster {self.cluster}.")
        if self.cluster is None:
            self._claimed_at = time.monotonic()
            self._inherited = bool(self.catalog.domains or self.catalog.adapters)
        self.cluster = wanted.uid
        return RegisteredCluster(known_seconds=time.monotonic() - self._claimed_at, inherited=self._inherited)


class _ClientInMemory(ControlPlaneClient):
    def __init__(self, plane: FakeControlPlane, retry: RetryPolicy) -> None:
        super().__init__("http://control-plane", TOKEN, retry=retry)
        self._plane = plane

    async def _send(
        self, method: str, path: str, content: bytes | None, limit: aiohttp.ClientTimeout
    ) -> bytes:
        token = f"Bearer {self._token.current()}"
        answer = await self._plane.answer(method, f"{PREFIX}{path}", content or b"", token)
        if answer.status == 0:
            raise Unavailable("it could not be reached (ServerDisconnectedError)")
        check_status(answer.status, answer.body, None)
        return answer.body


def _error(status: int, reason: str, message: str) -> bytes:
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return json.dumps(error_body(message, kind, code=reason)).encode()
