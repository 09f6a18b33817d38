"""The runtime process against a control plane that says what the test wants."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Response
from starlette.types import ASGIApp

from hmi_api.internal.inference import InferReply
from hmi_api.internal.runtimes import (
    AdapterServing,
    DesiredState,
    DomainServing,
    Heartbeat,
    HeartbeatReply,
    RuntimeRegistration,
)
from hmi_runtime.server.process import RuntimeProcess
from hmi_runtime.server.settings import RuntimeSettings

TOKEN = "internal-token-of-the-tests"
LIMIT = 120.0


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until ``condition`` is true; fail after a limit."""
    until = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < until, f"did not happen: {what}"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(app: ASGIApp, port: int) -> Iterator[str]:
    """Serve an app on a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started, "the server starts")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(LIMIT)
        assert not thread.is_alive()


@dataclass
class ScriptedControlPlane:
    """Serves the internal API for runtimes from what a test sets, and records what runtimes report."""

    desired: DesiredState = field(default_factory=lambda: DesiredState(revision=1, full=True))
    known: bool = False
    registrations: list[RuntimeRegistration] = field(default_factory=list)
    beats: list[Heartbeat] = field(default_factory=list)
    deregistrations: int = 0

    def serve(self, *adapters: AdapterServing, domains: tuple[DomainServing, ...]) -> None:
        """Desire exactly these adapters."""
        self.desired = DesiredState(
            revision=self.desired.revision + 1, full=True, domains=list(domains), adapters=list(adapters)
        )

    def ready(self) -> set[str]:
        """The versions that runtimes have reported as ready and not as gone."""
        ready: set[str] = set()
        for beat in self.beats:
            ready |= {f"{one.adapter}@{one.version}" for one in beat.ready}
            ready -= {f"{one.adapter}@{one.version}" for one in beat.gone}
        return ready

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.put("/internal/v1/runtimes/{_}", status_code=204)
        async def register(_: str, registration: RuntimeRegistration) -> Response:
            self.known = True
            self.registrations.append(registration)
            return Response(status_code=204)

        @app.post("/internal/v1/runtimes/{_}/heartbeat")
        async def heartbeat(_: str, beat: Heartbeat) -> HeartbeatReply:
            if self.known:
                self.beats.append(beat)
            return HeartbeatReply(known=self.known, desired_revision=self.desired.revision)

        @app.get("/internal/v1/runtimes/{_}/desired")
        async def desired(_: str, since: int, wait: float) -> DesiredState:
            until = time.monotonic() + min(wait, 0.5)
            # The test sets the desired state from another thread, so this polls it.
            while since == self.desired.revision and time.monotonic() < until:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            if since == self.desired.revision:
                return DesiredState(revision=since, full=False)
            return self.desired

        @app.delete("/internal/v1/runtimes/{_}", status_code=204)
        async def deregister(_: str) -> Response:
            self.deregistrations += 1
            return Response(status_code=204)

        return app


@dataclass
class Runtime:
    url: str

    def infer(self, *rows: dict[str, object], token: str = TOKEN) -> httpx.Response:
        return httpx.post(
            f"{self.url}/internal/v1/infer",
            json={"requestId": "r", "rows": list(rows)},
            headers={"Authorization": f"Bearer {token}"},
            timeout=LIMIT,
        )

    def first(self, adapter: str) -> object:
        """Return the version that answered, or the reason why none did."""
        result = InferReply.model_validate_json(
            self.infer({"adapter": adapter, "text": "a wheel"}).content
        ).results[0]
        return result.error.reason if result.error else result.version

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers={"Authorization": f"Bearer {TOKEN}"})


@pytest.fixture
def control_plane() -> ScriptedControlPlane:
    return ScriptedControlPlane()


@pytest.fixture
def runtime(control_plane: ScriptedControlPlane, settings: RuntimeSettings) -> Iterator[Runtime]:
    with running(control_plane.app(), free_port()) as url:
        port = free_port()
        told = settings.model_copy(
            update={"control_plane_url": url, "runtime_url": f"http://127.0.0.1:{port}"}
        )
        with running(RuntimeProcess(told).app, port) as runtime_url:
            yield Runtime(runtime_url)


def test_it_loads_what_is_wanted_and_says_so(world, control_plane, runtime) -> None:  # type: ignore[no-untyped-def]
    domain = world.domain("bikes/repair")
    control_plane.serve(world.adapter("acme/topic", domain), domains=(domain,))
    eventually(lambda: control_plane.ready() == {"acme/topic@1"}, "the adapter is ready")
    eventually(lambda: runtime.get("/readyz").status_code == 200, "the runtime is ready")
    assert runtime.first("acme/topic") == 1
    stats = runtime.get("/internal/v1/stats").json()
    assert stats["registered_adapters"] == 1
    assert stats["tenants"]["acme"]["host"] > 0
    assert stats["domains"]["bikes/repair@1"]["lookups"] == 4
    text = runtime.get("/metrics").text
    for name in ("hmi_batch_size", "hmi_plot_lookups_total", "hmi_adapter_loads_total", "hmi_resident_bytes"):
        assert name in text
    assert runtime.get("/healthz").status_code == 200


def test_metrics_have_a_port_of_their_own(
    control_plane: ScriptedControlPlane, settings: RuntimeSettings
) -> None:
    port, metrics_port = free_port(), free_port()
    with running(control_plane.app(), free_port()) as url:
        told = settings.model_copy(
            update={
                "control_plane_url": url,
                "runtime_url": f"http://127.0.0.1:{port}",
                "metrics_port": metrics_port,
            }
        )
        with running(RuntimeProcess(told).app, port) as runtime_url:
            runtime = Runtime(runtime_url)
            for path in ("/metrics", "/openapi.json", "/docs"):
                assert runtime.get(path).status_code == 404
            text = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics").text
    for name in ("hmi_batch_size", "hmi_queue_rows", "hmi_registered_adapters"):
        assert name in text


def test_versions_change_over_without_dropping_a_request(world, control_plane, runtime) -> None:  # type: ignore[no-untyped-def]
    old, new = world.domain("bikes/repair", 1, seed=1), world.domain("bikes/repair", 2, seed=2)
    control_plane.serve(world.adapter("acme/topic", old), domains=(old,))
    eventually(lambda: control_plane.ready() == {"acme/topic@1"}, "version 1 is ready")
    seen: list[object] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            seen.append(runtime.first("acme/topic"))

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: seen, "version 1 answers")
    control_plane.serve(world.adapter("acme/topic", new, version=2, seed=7), domains=(old, new))
    eventually(lambda: control_plane.ready() == {"acme/topic@2"}, "version 2 is ready and version 1 gone")
    stop.set()
    asking.join(LIMIT)
    assert set(seen) == {1, 2}
    assert seen == sorted(seen)  # type: ignore[type-var]


def test_an_adapter_made_anew_under_its_name_is_reported_again(world, control_plane, runtime) -> None:  # type: ignore[no-untyped-def]
    domain = world.domain("bikes/repair")
    control_plane.serve(world.adapter("acme/topic", domain, seed=1), domains=(domain,))
    eventually(lambda: control_plane.ready() == {"acme/topic@1"}, "the first one is ready")
    told = len(control_plane.beats)
    second = world.adapter("acme/topic", domain, seed=2)
    control_plane.serve(second, domains=(domain,))
    eventually(lambda: any(beat.ready for beat in control_plane.beats[told:]), "the second one is ready")
    copies = world.folder / "cache" / "adapter"
    kept = {second.artifact.digest.removeprefix("sha256:")}
    eventually(lambda: {path.name for path in copies.iterdir()} == kept, "the first one's copy is gone")
    assert runtime.first("acme/topic") == 1
    assert control_plane.ready() == {"acme/topic@1"}


def test_a_removed_adapter_is_gone_with_its_bytes(world, control_plane, runtime) -> None:  # type: ignore[no-untyped-def]
    domain = world.domain("bikes/repair")
    kept, removed = world.adapter("acme/a", domain, seed=1), world.adapter("zeta/b", domain, seed=2)
    control_plane.serve(kept, removed, domains=(domain,))
    eventually(lambda: len(control_plane.ready()) == 2, "both are ready")
    assert runtime.first("zeta/b") == 1
    control_plane.desired = DesiredState(
        revision=control_plane.desired.revision + 1, full=False, removed_adapters=["zeta/b"]
    )
    eventually(lambda: control_plane.ready() == {"acme/a@1"}, "the other is gone")
    assert runtime.first("zeta/b") == "NotLoaded"
    assert runtime.first("acme/a") == 1
    assert "zeta" not in runtime.get("/internal/v1/stats").json()["tenants"]
    copies = {path.name for path in (world.folder / "cache" / "adapter").iterdir()}
    assert copies == {kept.artifact.digest.removeprefix("sha256:")}


def test_a_broken_adapter_is_reported_and_the_rest_serves(world, control_plane, runtime) -> None:  # type: ignore[no-untyped-def]
    domain = world.domain("bikes/repair")
    good, bad = world.adapter("acme/good", domain, seed=1), world.adapter("acme/bad", domain, seed=2)
    stored = world.folder / "store" / bad.artifact.uri / "adapter.safetensors"
    stored.write_bytes(stored.read_bytes()[:-8])
    control_plane.serve(bad, good, domains=(domain,))
    eventually(lambda: control_plane.ready() == {"acme/good@1"}, "the good one is ready")
    eventually(lambda: any(beat.failed for beat in control_plane.beats), "the bad one is reported")
    (failure,) = next(beat.failed for beat in control_plane.beats if beat.failed)
    assert (failure.adapter, failure.reason) == ("acme/bad", "ArtifactTruncated")
    assert runtime.first("acme/good") == 1
    eventually(lambda: runtime.get("/readyz").status_code == 200, "the runtime is ready all the same")


def test_an_adapter_too_large_for_a_slot_is_reported_and_never_ready(world, control_plane, runtime) -> None:  # type: ignore[no-untyped-def]
    domain = world.domain("bikes/repair")
    good = world.adapter("acme/good", domain, seed=1)
    large = world.adapter("acme/large", domain, seed=2, labels=9)  # slots have room for 8
    control_plane.serve(large, good, domains=(domain,))
    eventually(lambda: any(beat.failed for beat in control_plane.beats), "the large one is reported")
    (failure,) = next(beat.failed for beat in control_plane.beats if beat.failed)
    assert (failure.adapter, failure.reason) == ("acme/large", "AdapterTooLarge")
    assert "HMI_MAX_LABELS" in failure.message
    eventually(lambda: runtime.get("/readyz").status_code == 200, "the runtime is ready all the same")
    eventually(lambda: control_plane.ready() == {"acme/good@1"}, "only the good one is ready")
    assert runtime.first("acme/large") == "NotLoaded"


def test_a_control_plane_that_forgot_is_told_everything_again(world, control_plane, runtime) -> None:  # type: ignore[no-untyped-def]
    domain = world.domain("bikes/repair")
    control_plane.serve(world.adapter("acme/topic", domain), domains=(domain,))
    eventually(lambda: control_plane.ready() == {"acme/topic@1"}, "the adapter is ready")
    control_plane.beats.clear()
    control_plane.known = False
    eventually(lambda: control_plane.ready() == {"acme/topic@1"}, "it is reported again")
    assert len(control_plane.registrations) == 2
    assert runtime.first("acme/topic") == 1


def test_it_goes_on_serving_while_the_control_plane_is_away(world, control_plane, settings) -> None:  # type: ignore[no-untyped-def]
    domain = world.domain("bikes/repair")
    control_plane.serve(world.adapter("acme/topic", domain), domains=(domain,))
    plane_port, port = free_port(), free_port()
    urls = {"control_plane_url": f"http://127.0.0.1:{plane_port}", "runtime_url": f"http://127.0.0.1:{port}"}
    process = RuntimeProcess(settings.model_copy(update=urls))
    with running(process.app, port) as url:
        runtime = Runtime(url)
        assert runtime.get("/readyz").status_code == 503
        with running(control_plane.app(), plane_port):
            eventually(lambda: control_plane.ready() == {"acme/topic@1"}, "the adapter is ready")
        assert runtime.first("acme/topic") == 1
        assert runtime.get("/readyz").status_code == 200


def test_only_the_internal_token_opens_it(runtime) -> None:  # type: ignore[no-untyped-def]
    refused = runtime.infer({"adapter": "a/b", "text": "x"}, token="something-else")
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"
    malformed = runtime.infer({"adapter": "a/b", "surprise": 1})
    assert malformed.status_code == 400
    assert "error" in malformed.json()


def test_a_body_beyond_the_limit_is_refused(control_plane, settings) -> None:  # type: ignore[no-untyped-def]
    port = free_port()
    process = RuntimeProcess(settings.model_copy(update={"body_limit_bytes": 1000}))
    with running(process.app, port) as url:
        assert Runtime(url).infer({"adapter": "a/b", "text": "x" * 2000}).status_code == 413


def test_a_body_that_never_comes_is_408_and_a_stranger_is_told_401(control_plane, settings) -> None:  # type: ignore[no-untyped-def]
    port = free_port()
    process = RuntimeProcess(settings.model_copy(update={"body_seconds": 0.3}))

    def answer(token: str) -> bytes:
        lines = [f"Authorization: Bearer {token}", "Content-Type: application/json", "Content-Length: 1000"]
        head = "\r\n".join(["POST /internal/v1/infer HTTP/1.1", "Host: x", *lines, "", ""])
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as connection:
            connection.sendall(head.encode())
            return connection.recv(65536)

    with running(process.app, port):
        assert answer(TOKEN).startswith(b"HTTP/1.1 408 ")
        assert answer("something-else").startswith(b"HTTP/1.1 401 ")


def test_sigterm_drains_deregisters_and_ends(world, control_plane, settings) -> None:  # type: ignore[no-untyped-def]
    domain = world.domain("bikes/repair")
    control_plane.serve(world.adapter("acme/topic", domain), domains=(domain,))
    port = free_port()
    with running(control_plane.app(), free_port()) as plane:
        environment = {
            **os.environ,
            "HMI_CONTROL_PLANE_URL": plane,
            "HMI_INTERNAL_TOKEN": TOKEN,
            "HMI_RUNTIME_URL": f"http://127.0.0.1:{port}",
            "HMI_ARTIFACTS": settings.artifacts,
            "HMI_CACHE_DIR": str(settings.cache_dir),
            "HMI_THREADS": "1",
        }
        child = subprocess.Popen([sys.executable, "-m", "hmi_runtime.server"], env=environment)
        try:
            eventually(lambda: control_plane.ready() == {"acme/topic@1"}, "the adapter is ready")
            assert Runtime(f"http://127.0.0.1:{port}").first("acme/topic") == 1
            child.send_signal(signal.SIGTERM)
            assert child.wait(LIMIT) in (0, -signal.SIGTERM)
        finally:
            child.kill()
            child.wait()
    assert control_plane.deregistrations == 1
