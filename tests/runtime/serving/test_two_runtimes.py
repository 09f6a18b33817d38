"""Real runtimes, control plane and gateway: requests while a runtime terminates."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from serving import LIMIT, eventually, free_port

from hmi_api.artifacts import ArtifactRef
from hmi_api.internal.runtimes import AdapterServing, DomainServing
from hmi_control_plane.app import create_app
from hmi_control_plane.settings import Settings
from hmi_runtime.server.process import build_server
from hmi_runtime.server.settings import RuntimeSettings

TOKEN = "internal-token-of-the-tests"
ADMIN = "admin-key-of-the-tests"


def _references(*refs: ArtifactRef) -> list[dict[str, Any]]:
    return [ref.model_dump(mode="json", by_alias=True) for ref in refs]


class Served:
    """A server on a thread."""

    def __init__(self, server: uvicorn.Server) -> None:
        self.server = server
        self._thread = threading.Thread(target=server.run)
        self._thread.start()
        eventually(lambda: server.started or not self._thread.is_alive(), "the server starts")

    def stop(self) -> None:
        """Stop it and wait."""
        self.server.should_exit = True
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()

    def wait(self) -> None:
        """Wait until it has stopped by itself."""
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()


class Runtime(Served):
    """A runtime that can be terminated as the kubelet does."""

    def __init__(self, settings: RuntimeSettings) -> None:
        self._loop: Any = None
        server = build_server(settings)
        startup = server.startup

        async def noted(*arguments: Any, **options: Any) -> None:
            self._loop = asyncio.get_running_loop()
            await startup(*arguments, **options)

        server.startup = noted  # type: ignore[method-assign]
        super().__init__(server)

    def terminate(self) -> None:
        """Drain as after SIGTERM, which a thread cannot receive."""
        self._loop.call_soon_threadsafe(self.server.handle_exit, signal.SIGTERM, None)


@dataclass
class System:
    """A control plane with its gateway, and the runtimes that were started."""

    url: str
    settings: RuntimeSettings
    key: str = ""
    runtimes: dict[str, Runtime] = field(default_factory=dict)

    def internal(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = httpx.request(
            method,
            f"{self.url}/internal/v1{path}",
            json=body,
            headers=headers,
            timeout=LIMIT,
            trust_env=False,
        )
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def start(self, name: str) -> Runtime:
        """Start the runtime called ``name`` at a new address."""
        settings = self.settings.model_copy(
            update={
                "control_plane_url": self.url,
                "runtime_id": name,
                "runtime_url": f"http://127.0.0.1:{free_port()}",
                "cache_dir": self.settings.cache_dir / name,
            }
        )
        self.runtimes[name] = Runtime(settings)
        return self.runtimes[name]

    def publish(self, domain: DomainServing, adapter: AdapterServing, *, replicas: int = 1) -> None:
        """Publish a Domain and a TaskAdapter in the catalog, as training does."""
        tenant, name = adapter.key.split("/")
        namespace, domain_name = domain.key.split("/")
        for one in {tenant, namespace}:
            self.internal("PUT", f"/tenants/{one}")
        version = domain.version
        record = {"uid": "d", "tenant": namespace, "generation": 1, "specDigest": "sha256:1"}
        self.internal("PUT", f"/domains/{domain.key}", {**record, "baseUri": version.base.uri})
        base = version.base.model_dump(mode="json", by_alias=True)
        spec = {"baseModel": base, "corpus": [{"uri": "c.jsonl"}], "split": version.split}
        run = {"kind": "domain", "namespace": namespace, "name": domain_name, "spec": spec}
        made = _references(version.layers, *version.tables)
        figures = {"split": version.split, "entries": 8, "coverage": 0.5}
        self._run("d", namespace, run, {"artifacts": made, "baseDigest": version.base_digest, **figures})
        record = {
            "uid": "a",
            "tenant": tenant,
            "generation": 1,
            "specDigest": "sha256:1",
            "domain": domain.key,
        }
        record |= {"taskType": adapter.task_type.value, "replicas": replicas}
        self.internal("PUT", f"/adapters/{tenant}/{name}", record)
        current = self.internal("GET", f"/domains/{domain.key}")["current"]
        spec = {
            "domainRef": {"name": domain_name, "namespace": namespace},
            "task": {"type": adapter.task_type.value},
            "data": {"train": {"uri": "r.jsonl"}},
        }
        run = {"kind": "adapter", "namespace": tenant, "name": name, "spec": spec, "domain": current}
        result = {"artifacts": _references(adapter.artifact), "baseDigest": version.base_digest}
        result |= {"layersDigest": version.layers.digest, "labels": adapter.labels}
        self._run("a", tenant, run, result)

    def _run(self, uid: str, tenant: str, spec: Any, result: Any) -> None:
        wanted = {"uid": uid, "tenant": tenant, "specDigest": "sha256:1", "spec": spec}
        run = self.internal("POST", "/runs", wanted)
        assert self.internal("POST", f"/runs/{run['id']}/complete", result)["state"] == "Succeeded"

    def view(self) -> Any:
        return self.internal("GET", "/adapters/acme/topic")

    def classify(self) -> httpx.Response:
        """Send a request as the tenant acme."""
        if not self.key:
            made = httpx.post(
                f"{self.url}/admin/v1/tenants/acme/keys",
                json={"name": "test"},
                headers={"Authorization": f"Bearer {ADMIN}"},
                trust_env=False,
            )
            self.key = made.json()["key"]
        return httpx.post(
            f"{self.url}/classify",
            json={"model": "topic", "input": "a wheel"},
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=LIMIT,
            trust_env=False,
        )


@pytest.fixture
def system(models: Any, settings: RuntimeSettings, sqlite_url: str, tmp_path: Path) -> Iterator[System]:
    """A control plane without runtimes; ``bikes/repair`` and ``acme/topic`` are published."""
    plane = Settings(
        database_url=sqlite_url,
        artifacts=settings.artifacts,
        usage_dir=tmp_path / "usage",
        internal_token=TOKEN,
        admin_key=ADMIN,
        migrate_on_start=False,
    )
    port = free_port()
    config = uvicorn.Config(create_app(plane), port=port, log_config=None, timeout_graceful_shutdown=2)
    served = Served(uvicorn.Server(config))
    made = System(f"http://127.0.0.1:{port}", settings)
    try:
        yield made
    finally:
        for runtime in made.runtimes.values():
            runtime.stop()
        served.stop()


@pytest.fixture
def published(models: Any, system: System) -> System:
    domain = models.domain("bikes/repair")
    system.publish(domain, models.adapter("acme/topic", domain))
    return system


class Traffic:
    """Sends requests without a pause and keeps the answers."""

    def __init__(self, system: System) -> None:
        self.statuses: list[int] = []
        self._system = system
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._stop.is_set():
            self.statuses.append(self._system.classify().status_code)

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(LIMIT)


def test_a_terminated_runtime_loses_no_request_and_its_models_are_served_again(published: System) -> None:
    first = published.start("r1")
    eventually(lambda: published.view()["loadedOn"] == ["r1"], "the only runtime has it")
    published.start("r2")
    with Traffic(published) as traffic:
        eventually(lambda: traffic.statuses, "it answers")
        first.terminate()
        first.wait()
        del published.runtimes["r1"]
        answered = len(traffic.statuses)
        eventually(lambda: len(traffic.statuses) > answered + 3, "the other answers")
    assert set(traffic.statuses) == {200}
    assert published.view()["loadedOn"] == ["r2"]
    # The last runtime stops too. The next one to start loads the model without further action.
    published.runtimes.pop("r2").stop()
    assert published.classify().status_code == 503
    assert published.view()["loadedOn"] == []
    published.start("r2")
    eventually(lambda: published.classify().status_code == 200, "it comes back at another address")
    assert published.view()["loadedOn"] == ["r2"]


def test_a_model_is_ready_once_it_is_loaded_and_recovers_from_a_broken_store(
    published: System, settings: RuntimeSettings
) -> None:
    store = Path(settings.artifacts)
    hidden = store.parent / "hidden"
    (store / "adapter").rename(hidden)
    published.start("r1")
    eventually(lambda: published.view()["loadError"], "the failure is reported")
    view = published.view()
    assert (view["scheduledOn"], view["loadedOn"]) == (["r1"], [])
    assert view["loadError"]["reason"] == "ArtifactMissing"
    refused = published.classify()
    assert refused.status_code == 409, "nothing is under way that waiting would help"
    assert "ArtifactMissing" in refused.text
    hidden.rename(store / "adapter")
    eventually(lambda: published.view()["loadedOn"] == ["r1"], "it is loaded after all")
    assert published.view()["loadError"] is None
    assert published.classify().status_code == 200


def test_a_model_gets_the_requested_replicas(models: Any, system: System) -> None:
    domain = models.domain("bikes/repair")
    system.start("r1")
    system.start("r2")
    system.publish(domain, models.adapter("acme/topic", domain), replicas=2)
    eventually(lambda: system.view()["loadedOn"] == ["r1", "r2"], "both have it")
