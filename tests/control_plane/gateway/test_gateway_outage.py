"""A gateway process while PostgreSQL is down: cached keys and routes work, and no usage is lost."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serving import eventually

from hmi_control_plane.app import create_app
from hmi_control_plane.settings import Part, Settings

pytestmark = pytest.mark.postgres


class Wire:
    """A TCP proxy for a PostgreSQL server's socket that can be cut."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []
        self.port = 0
        self.connect()

    def connect(self) -> None:
        """Accept connections (again)."""
        self._listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """Refuse connections and close the open ones."""
        listener, self._listener = self._listener, None
        for one in [*([listener] if listener else []), *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(self._target)
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_pass_on, args=(source, sink), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def database_url(postgres_url: str) -> str:
    """PostgreSQL, over its socket."""
    return postgres_url


@pytest.fixture
def wire(postgres_server: Any) -> Iterator[Wire]:
    """The gateway's connection to PostgreSQL."""
    made = Wire(f"{postgres_server.folder}/.s.PGSQL.{postgres_server.port}")
    yield made
    made.cut()


@pytest.fixture
def gateway(
    settings: Settings, database_url: str, wire: Wire, network: Any, tmp_path: Path
) -> Iterator[TestClient]:
    """A gateway process with the shortest caches."""
    name = database_url.partition("/")[2].partition("?")[0].rpartition("/")[2]
    own = settings.model_copy(
        update={
            "database_url": f"postgresql://hmi@127.0.0.1:{wire.port}/{name}",
            "usage_dir": tmp_path / "gateway-usage",
            "key_cache_seconds": 0.0,
            "admin_key": None,
        }
    )
    app = create_app(own, Part.GATEWAY, runtimes=network)
    with TestClient(app, raise_server_exceptions=False) as started:
        yield started


def classify(gateway: TestClient, key: str, model: str = "spam") -> Any:
    headers = {"Authorization": f"Bearer {key}"}
    return gateway.post("/classify", json={"model": model, "input": "yes"}, headers=headers)


def used(acme: Any) -> int:
    """Return how many requests of acme are in the catalog."""
    items = acme.call("GET", "/v1/usage").json()["items"]
    return sum(int(item["quantity"]) for item in items if item["meter"] == "requests")


def test_cached_keys_and_routes_work_while_the_database_is_down(
    gateway: TestClient, wire: Wire, acme: Any, other_tenant: Any, network: Any, cluster: Any
) -> None:
    network.add("r2")
    cluster.runtime("r2")
    cluster.beat("r2", ready=["acme/spam@1"])
    assert classify(gateway, acme.key).status_code == 200
    assert gateway.get("/readyz").status_code == 200
    before = used(acme)
    wire.cut()
    for _ in range(5):
        assert classify(gateway, acme.key).status_code == 200
    network.runtimes["r1"].status = 500  # cached routes have another runtime
    for _ in range(5):
        assert classify(gateway, acme.key).status_code == 200
    assert gateway.get("/readyz").status_code == 200
    for unknown in (classify(gateway, other_tenant.key), classify(gateway, acme.key, "topic")):
        assert unknown.status_code == 503
        assert unknown.headers["retry-after"]
    wire.connect()
    eventually(
        lambda: classify(gateway, other_tenant.key).status_code == 404, "unknown keys are checked again"
    )
    eventually(lambda: used(acme) >= before + 10, "usage during the outage is in the catalog")


def test_a_revoked_key_is_not_accepted_during_an_outage(
    gateway: TestClient, wire: Wire, acme: Any, cluster: Any
) -> None:
    assert classify(gateway, acme.key).status_code == 200
    cluster.admin("DELETE", f"/tenants/acme/keys/{acme.key.split('_')[1]}")
    assert classify(gateway, acme.key).status_code == 401
    wire.cut()
    assert classify(gateway, acme.key).status_code in (401, 503)


def test_a_gateway_that_never_reached_the_database_is_not_ready(gateway: TestClient, wire: Wire) -> None:
    wire.cut()
    assert gateway.get("/healthz").status_code == 200
    assert gateway.get("/readyz").status_code == 503
    wire.connect()
    eventually(lambda: gateway.get("/readyz").status_code == 200, "it is ready when the database answers")
