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
from fake_runtimes import FakeRuntimes
from fake_window_counts import FakeWindowCounts
from pydantic import BaseModel, ValidationError

from hmi_api.errors import error_body
from hmi_api.internal.catalog import (
    AdapterETags,
    AdapterKeys,
    AdapterRecord,
    ClusterRegistration,
    DomainRecord,
    PublishAgain,
    PublishedAgain,
    RegisteredCluster,
    Revocation,
)
from hmi_api.internal.client import ONE_ATTEMPT, PREFIX, ControlPlaneClient, Refused, check_status
from hmi_api.internal.precision import EngineReports, PrecisionRequest
from hmi_api.internal.refreshes import RestoredTable, RestoreTable
from hmi_api.internal.retry import RetryPolicy, Unavailable
from hmi_api.internal.runs import (
    RUN_ID,
    ArtifactCommit,
    RunCreate,
    RunFailure,
    RunPods,
    RunProgress,
    RunResult,
)
from hmi_api.internal.runtimes import Heartbeat, RuntimeRegistration
from hmi_api.internal.window_counts import DEFAULT_WINDOWS_READ, WindowCountReport

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
class Request:
    """A request as it arrived; ``path`` begins after ``/internal/v1`` and has no query."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes
    token: str | None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


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
        for pattern, type_, handler in _ROUTES:
            if found := pattern.fullmatch(str(request)):
                for name, text in found.groupdict().items():
                    if not re.fullmatch(_PATTERNS.get(name, ".*"), text):
                        raise Refused(422, "InvalidField", f"{name} should match {_PATTERNS[name]}.")
                body = [type_.model_validate_json(request.body)] if type_ else []
                content = handler(self, _Call(request, **found.groupdict()), *body)
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


@dataclass
class _Call:
    """A request with the parts of its path."""

    request: Request
    kind: str = ""
    namespace: str = ""
    name: str = ""
    tenant: str = ""
    run: str = ""
    runtime: str = ""
    digits: str = ""
    file: str = ""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    def query(self, name: str) -> str | None:
        return self.request.query.get(name)


def _error(status: int, reason: str, message: str) -> bytes:
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return json.dumps(error_body(message, kind, code=reason)).encode()


def _table(plane: FakeControlPlane, call: _Call) -> dict[str, Any]:
    return plane.catalog.domains if call.kind == "domains" else plane.catalog.adapters


def _view(plane: FakeControlPlane, call: _Call) -> BaseModel:
    if call.kind == "domains":
        view = plane.catalog.domain_view(call.key)
        has_version = view.current is not None and call.query("lookups") == "true"
        lookups = plane.windows.lookups_of(call.key, view.current.version) if has_version else None
        with_tree = view.current is not None and call.query("tree") == "true"
        tree = plane.windows.tree_of(call.key) if with_tree else None
        return view.model_copy(update={"lookups": lookups, "tree": tree})
    return plane.catalog.adapter_view(call.key, running=len(plane.runtimes.running))


def _declare(plane: FakeControlPlane, call: _Call) -> None:
    type_ = DomainRecord if call.kind == "domains" else AdapterRecord
    plane.catalog.declare(_table(plane, call), call.key, type_.model_validate_json(call.request.body))


def _etags(plane: FakeControlPlane, call: _Call, wanted: AdapterKeys) -> AdapterETags:
    known = plane.catalog.adapters
    return AdapterETags(etags={key: plane.catalog.etag(key) for key in wanted.keys if key in known})


def _upload(plane: FakeControlPlane, call: _Call) -> None:
    plane.catalog.require_open(call.run)
    plane.catalog.artifacts.upload(call.run, call.digits, call.request.body)


def _commit(plane: FakeControlPlane, call: _Call, commit: ArtifactCommit) -> BaseModel:
    plane.catalog.require_open(call.run)
    return plane.catalog.artifacts.commit(call.run, commit.manifest)


def _read_file(plane: FakeControlPlane, call: _Call) -> bytes:
    used = plane.catalog.artifacts_of(call.run)
    return plane.catalog.artifacts.read(call.run, used, call.digits, call.file)


_Handler = Callable[..., Any]


def _route(method: str, path: str, type_: type[BaseModel] | None, handler: _Handler) -> Any:
    path = path.replace("{kind}", "(?P<kind>domains|adapters)").replace("{file}", "(?P<file>.+)")
    path = path.replace("{key}", "{namespace}/{name}")
    path = re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", path)
    return re.compile(f"{method} {path}"), type_, handler


_ROUTES: list[tuple[re.Pattern[str], Any, _Handler]] = [
    _route("PUT", "/cluster", ClusterRegistration, lambda plane, call, body: plane.claim(body)),
    _route("PUT", "/tenants/{tenant}", None, lambda plane, call: plane.catalog.tenants.add(call.tenant)),
    _route("POST", "/adapters/etags", AdapterKeys, _etags),
    _route("GET", "/{kind}", None, lambda plane, call: plane.catalog.page(
        _table(plane, call), call.query("cursor"), call.query("domain"))),
    _route("PUT", "/{kind}/{key}", None, _declare),
    _route("GET", "/{kind}/{key}", None, _view),
    _route("DELETE", "/{kind}/{key}", None, lambda plane, call: plane.catalog.delete(
        _table(plane, call), call.key, call.query("uid"))),
    _route("POST", "/{kind}/{key}/publish-again", PublishAgain, lambda plane, call, body: PublishedAgain(
        version=plane.catalog.publish_again(_table(plane, call), call.key, body))),
    _route("GET", "/domains/{key}/refreshes", None, lambda plane, call: plane.catalog.refreshes(call.key)),
    _route("POST", "/domains/{key}/restore-table", RestoreTable, lambda plane, call, body: RestoredTable(
        version=plane.catalog.restore_table(call.key, body))),
    _route("PUT", "/adapters/{key}/revocation", Revocation,
        lambda plane, call, body: plane.catalog.revoke(call.key, body)),
    _route("DELETE", "/adapters/{key}/revocation", None, lambda plane, call: plane.catalog.restore(call.key)),
    _route("POST", "/runs", RunCreate, lambda plane, call, body: plane.catalog.create_run(body)),
    _route("GET", "/runs/{run}", None, lambda plane, call: plane.catalog.run(call.run)),
    _route("PUT", "/runs/{run}/pods", RunPods,
        lambda plane, call, body: plane.catalog.record_pods(call.run, body.pods)),
    _route("GET", "/runs/{run}/window-counts", None, lambda plane, call: plane.windows.read(
        call.run,
        int(call.query("most") or DEFAULT_WINDOWS_READ),
        children=call.query("children") == "true")),
    _route("POST", "/runs/{run}/progress", RunProgress,
        lambda plane, call, body: plane.catalog.report_progress(call.run, body)),
    _route("POST", "/runs/{run}/complete", RunResult,
        lambda plane, call, body: plane.catalog.complete_run(call.run, body)),
    _route("POST", "/runs/{run}/fail", RunFailure,
        lambda plane, call, body: plane.catalog.fail_run(call.run, body)),
    _route("PUT", "/artifacts/{run}/files/{digits}", None, _upload),
    _route("POST", "/artifacts/{run}", ArtifactCommit, _commit),
    _route("GET", "/artifacts/{run}/{digits}/{file}", None, _read_file),
    _route("PUT", "/runtimes/{runtime}", RuntimeRegistration,
        lambda plane, call, body: plane.runtimes.register(call.runtime, body)),
    _route("DELETE", "/runtimes/{runtime}", None,
        lambda plane, call: plane.runtimes.deregister(call.runtime)),
    _route("POST", "/runtimes/{runtime}/heartbeat", Heartbeat,
        lambda plane, call, body: plane.runtimes.heartbeat(call.runtime, body)),
    _route("POST", "/runtimes/{runtime}/window-counts", WindowCountReport,
        lambda plane, call, body: plane.windows.record(body)),
    _route("POST", "/runtimes/{runtime}/precision-choices", PrecisionRequest,
        lambda plane, call, body: plane.runtimes.record_precision(body)),
    _route("PUT", "/runtimes/{runtime}/engines", EngineReports,
        lambda plane, call, body: plane.runtimes.report_engines(call.runtime, body)),
    _route("GET", "/runtimes/{runtime}/desired", None, lambda plane, call: plane.runtimes.desired_state(
        call.runtime, int(call.query("since") or 0))),
]  # fmt: skip
