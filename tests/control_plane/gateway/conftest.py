"""A control plane whose runtimes are small applications in this process with the runtimes' API."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient

from hmi_api.internal.inference import InferReply, InferRequest, InferRow, RowError, RowResult, TokenLabel
from hmi_control_plane.app import create_app
from hmi_control_plane.gateway.runtime_client import ConnectionBrokenError, HttpResponse, NoConnectionError
from hmi_control_plane.settings import Settings


@dataclass
class SmallRuntime:
    """Counts words as tokens; says yes when a text has the word yes. Its fields make it fail."""

    refuses: int = 0  # connections, before it accepts one
    breaks: int = 0  # connections that end after the request and before the answer
    status: int = 200
    row_errors: dict[str, RowError] = field(default_factory=dict)  # by adapter
    token_tasks: set[str] = field(default_factory=set)  # adapters
    tenant_ids: dict[str, str] = field(default_factory=dict)  # by adapter: whose it is
    requests: list[InferRequest] = field(default_factory=list)
    tokens_shown: list[str] = field(default_factory=list)

    def answer(self, row: InferRow, tenant_id: str | None = None) -> RowResult:
        """Return the result of one row of the tenant with ``tenant_id``."""
        if self.tenant_ids.get(row.adapter, tenant_id) != tenant_id:
            return RowResult(error=RowError(status=503, reason="NotLoaded", message="It is not loaded."))
        if row.adapter in self.row_errors:
            return RowResult(error=self.row_errors[row.adapter])
        words = row.words if row.words is not None else (row.text or "").split()
        if row.adapter in self.token_tasks:
            return RowResult(
                version=1, labels=["B-X", "I-X", "O"], tokens=_tags(words), prompt_tokens=len(words)
            )
        yes = 0.75 if "yes" in words else 0.25
        return RowResult(version=1, labels=["no", "yes"], scores=[1 - yes, yes], prompt_tokens=len(words))


def _tags(words: list[str]) -> list[TokenLabel]:
    """Label capitalised words as parts of an entity, in words joined by one space."""
    labels, start, before = [], 0, "O"
    for word in words:
        before = ("B-X" if before == "O" else "I-X") if word[:1].isupper() else "O"
        labels.append(TokenLabel(text=word, start=start, end=start + len(word), label=before, score=0.5))
        start += len(word) + 1
    return labels


class SmallNetwork:
    """Connects ``http://{id}:9000`` to the runtime with that id."""

    def __init__(self) -> None:
        self.runtimes: dict[str, SmallRuntime] = {}
        self._apps: dict[str, httpx.ASGITransport] = {}

    def add(self, name: str) -> SmallRuntime:
        """Start a runtime."""
        runtime = self.runtimes[name] = SmallRuntime()
        self._apps[name] = httpx.ASGITransport(_app(runtime))
        return runtime

    async def post(self, url: str, token: str, body: bytes) -> HttpResponse:
        """Forward one request, or refuse the connection."""
        request = httpx.Request("POST", url, headers={"Authorization": f"Bearer {token}"}, content=body)
        runtime = self.runtimes.get(request.url.host)
        if runtime is None or runtime.refuses > 0:
            if runtime is not None:
                runtime.refuses -= 1
            raise NoConnectionError("connection refused")
        if runtime.breaks > 0:
            runtime.breaks -= 1
            raise ConnectionBrokenError("connection reset")
        request.headers["Content-Type"] = "application/json"
        response = await self._apps[request.url.host].handle_async_request(request)
        return HttpResponse(response.status_code, await response.aread())

    async def close(self) -> None:
        """There is nothing to close."""


def _app(runtime: SmallRuntime) -> FastAPI:
    app = FastAPI()

    @app.post("/internal/v1/infer")
    async def infer(body: InferRequest, request: Request) -> Response:
        runtime.requests.append(body)
        runtime.tokens_shown.append(request.headers["authorization"])
        if runtime.status != 200:
            return Response(status_code=runtime.status)
        reply = InferReply(results=[runtime.answer(row, body.tenant_id) for row in body.rows])
        return Response(reply.model_dump_json(by_alias=True), media_type="application/json")

    return app


@pytest.fixture
def network() -> SmallNetwork:
    """The runtimes that the gateway can reach."""
    return SmallNetwork()


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """SQLite alone: other tests run the gateway's queries on both databases."""
    return sqlite_url


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings with which usage is recorded quickly."""
    return settings.model_copy(update={"usage_flush_seconds": 0.01})


@pytest.fixture
def client(settings: Settings, network: SmallNetwork) -> Iterator[TestClient]:
    """The control plane, running, with the network to its runtimes in this process."""
    with TestClient(create_app(settings, runtimes=network), raise_server_exceptions=False) as started:
        yield started


class Tenant:
    """Calls the gateway with a tenant's key."""

    def __init__(self, client: TestClient, cluster: Any, name: str) -> None:
        cluster.internal("PUT", f"/tenants/{name}")
        self.key = cluster.admin("POST", f"/tenants/{name}/keys", {"name": "test"})["key"]
        self.client = client
        self.name = name

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request with the tenant's key."""
        headers = {"Authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        return self.client.request(method, path, headers=headers, **options)  # type: ignore[return-value]

    def classify(self, **body: Any) -> httpx.Response:
        """Call ``/classify``."""
        return self.call("POST", "/classify", json=body)


@pytest.fixture
def runtime(cluster: Any, network: SmallNetwork) -> SmallRuntime:
    """The runtime r1, which has acme's models spam, topic and names loaded; names is a token task."""
    small = network.add("r1")
    small.token_tasks.add("acme/names")
    cluster.runtime("r1")
    cluster.domain()
    cluster.adapter("spam")
    cluster.adapter("topic")
    cluster.adapter("names", taskType="TokenClassification")
    cluster.beat(ready=["acme/spam@1", "acme/topic@1", "acme/names@1"])
    return small


@pytest.fixture
def acme(client: TestClient, cluster: Any, runtime: SmallRuntime) -> Tenant:
    """A tenant with models."""
    return Tenant(client, cluster, "acme")


@pytest.fixture
def other_tenant(client: TestClient, cluster: Any) -> Tenant:
    """A tenant without models."""
    return Tenant(client, cluster, "other")
