"""The control plane over HTTP, and the requests of a reconciler, a trainer and a runtime."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hmi_control_plane.app import create_app
from hmi_control_plane.auth import authenticator
from hmi_control_plane.gateway import routes
from hmi_control_plane.http import health
from hmi_control_plane.settings import Settings

INTERNAL_TOKEN = "internal-token-of-the-tests"
ADMIN_KEY = "admin-key-of-the-tests"


def digest_of(name: str) -> str:
    """Return a digest made from ``name``."""
    return "sha256:" + hashlib.sha256(name.encode()).hexdigest()


def artifact(kind: str, name: str, size: int = 100) -> dict[str, Any]:
    """Return the reference of an artifact, as a trainer publishes it."""
    return {"kind": kind, "uri": f"{kind.lower()}/{name}", "digest": digest_of(name), "bytes": size}


@dataclass
class Cluster:
    """Calls the control plane as HMI's other components do."""

    client: TestClient

    def internal(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """Call the internal API; return the decoded body."""
        headers = {"Authorization": f"Bearer {INTERNAL_TOKEN}"}
        response = self.client.request(method, f"/internal/v1{path}", json=body, headers=headers, **options)
        assert response.is_success, response.text
        return response.json() if response.content else None

    def admin(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """Call the admin API; return the decoded body."""
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        response = self.client.request(method, f"/admin/v1{path}", json=body, headers=headers, **options)
        assert response.is_success, response.text
        return response.json() if response.content else None

    def declare_domain(
        self, name: str, *, tenant: str = "acme", spec: str = "1", uid: str = "", parent: str | None = None
    ) -> None:
        """Declare a Domain in the namespace with its tenant's name."""
        self.internal("PUT", f"/tenants/{tenant}")
        record = {
            "uid": uid or f"dom-{tenant}-{name}",
            "tenant": tenant,
            "generation": 1,
            "specDigest": digest_of(spec),
            "baseUri": "wheel://base",
            "parent": parent,
        }
        self.internal("PUT", f"/domains/{tenant}/{name}", record)

    def domain_run(
        self,
        name: str,
        *,
        tenant: str = "acme",
        spec: str = "1",
        attempt: int = 0,
        uid: str = "",
        refreshed: bool = False,
    ) -> Any:
        """Create a Domain's training run; ``refreshed`` says that the Domain has ``plot.refresh``."""
        body = {
            "uid": uid or f"dom-{tenant}-{name}",
            "tenant": tenant,
            "specDigest": digest_of(spec),
            "attempt": attempt,
            "spec": {
                "kind": "domain",
                "namespace": tenant,
                "name": name,
                "spec": {
                    "baseModel": {"uri": "wheel://base"},
                    "corpus": [{"uri": "corpus.jsonl"}],
                    "split": 3,
                    "plot": {"minFrequency": 2, **({"refresh": {}} if refreshed else {})},
                },
            },
        }
        return self.internal("POST", "/runs", body)

    def publish_domain(
        self,
        name: str,
        *,
        tenant: str = "acme",
        spec: str = "1",
        layers: str = "",
        size: int = 1000,
        parent: str | None = None,
        refreshed: bool = False,
    ) -> Any:
        """Train a Domain; ``layers`` names the layers artifact. Return its view."""
        self.declare_domain(name, tenant=tenant, spec=spec, parent=parent)
        run = self.domain_run(name, tenant=tenant, spec=spec, refreshed=refreshed)
        key = f"{tenant}-{name}-{spec}"
        self.complete_domain(run, layers=layers or f"layers-{key}", table=f"table-{key}", size=size)
        return self.internal("GET", f"/domains/{tenant}/{name}")

    def complete_domain(self, run: Any, *, layers: str, table: str, size: int = 1000) -> Any:
        """Complete a Domain's run with artifacts of these names; return the run."""
        result = {
            "artifacts": [artifact("Layers", layers, 50), artifact("Table", table, size)],
            "baseDigest": digest_of("base"),
            "split": 3,
            "entries": 10,
            "coverage": 0.5,
        }
        return self.internal("POST", f"/runs/{run['id']}/complete", result)

    def domain(self, name: str = "trade", *, tenant: str = "acme") -> Any:
        """Declare and train a Domain."""
        return self.publish_domain(name, tenant=tenant)

    def adapter_record(
        self, name: str, *, tenant: str = "acme", domain: str = "acme/trade", uid: str = "", **fields: Any
    ) -> dict[str, Any]:
        """Return what a reconciler declares of a TaskAdapter."""
        return {
            "uid": uid or f"ta-{tenant}-{name}",
            "tenant": tenant,
            "generation": 1,
            "specDigest": digest_of("1"),
            "domain": domain,
            "taskType": "SequenceClassification",
            **fields,
        }

    def declare_adapter(self, name: str, *, namespace: str = "", tenant: str = "acme", **fields: Any) -> None:
        """Declare a TaskAdapter."""
        self.internal("PUT", f"/tenants/{tenant}")
        record = self.adapter_record(name, tenant=tenant, **fields)
        self.internal("PUT", f"/adapters/{namespace or tenant}/{name}", record)

    def adapter_run(
        self,
        name: str,
        *,
        tenant: str = "acme",
        domain: str = "acme/trade",
        spec: str = "1",
        attempt: int = 0,
    ) -> Any:
        """Create a TaskAdapter's training run on its Domain's current version."""
        namespace, domain_name = domain.split("/")
        body = {
            "uid": f"ta-{tenant}-{name}",
            "tenant": tenant,
            "specDigest": digest_of(spec),
            "attempt": attempt,
            "spec": {
                "kind": "adapter",
                "namespace": tenant,
                "name": name,
                "spec": {
                    "domainRef": {"name": domain_name, "namespace": namespace},
                    "task": {"type": "SequenceClassification"},
                    "data": {"train": {"uri": "rows.jsonl"}},
                },
                "domain": self.internal("GET", f"/domains/{domain}")["current"],
            },
        }
        return self.internal("POST", "/runs", body)

    def complete_adapter(self, run: Any, **fields: Any) -> Any:
        """Complete an adapter's run; return the run."""
        spec = run["spec"]
        name = f"adapter-{spec['namespace']}-{spec['name']}-{run['specDigest']}-{run['attempt']}"
        result = {
            "artifacts": [artifact("Adapter", name, 10)],
            "baseDigest": digest_of("base"),
            "layersDigest": spec["domain"]["layers"]["digest"],
            "labels": ["no", "yes"],
            "metrics": {"accuracy": 0.9},
            "trainingSeconds": 1.2,
            **fields,
        }
        return self.internal("POST", f"/runs/{run['id']}/complete", result)

    def adapter(self, name: str, *, tenant: str = "acme", domain: str = "acme/trade", **fields: Any) -> Any:
        """Declare and train a TaskAdapter; return its view."""
        self.declare_adapter(name, tenant=tenant, domain=domain, **fields)
        self.complete_adapter(self.adapter_run(name, tenant=tenant, domain=domain))
        return self.view(name, tenant=tenant)

    def retrain(self, name: str, *, spec: str, tenant: str = "acme", replicas: int = 1, **result: Any) -> Any:
        """Change a TaskAdapter's spec and train it again; return the run."""
        self.declare_adapter(name, tenant=tenant, specDigest=digest_of(spec), replicas=replicas)
        return self.complete_adapter(self.adapter_run(name, tenant=tenant, spec=spec), **result)

    def view(self, name: str, *, tenant: str = "acme") -> Any:
        """Return a TaskAdapter's view."""
        return self.internal("GET", f"/adapters/{tenant}/{name}")

    def runtime(
        self,
        runtime_id: str = "r1",
        *,
        incarnation: str = "one",
        capacity: int = 10_000,
        url: str = "",
        host: int | None = None,
        tables: int | None = None,
    ) -> None:
        """Register a runtime, with separate budgets if ``host`` and ``tables`` are given."""
        body = {
            "url": url or f"http://{runtime_id}:9000",
            "device": "cpu",
            "capacityBytes": capacity,
            "incarnation": incarnation,
        }
        if host is not None and tables is not None:
            body |= {"capacityBytes": host + tables, "hostBytes": host, "tableBytes": tables}
        self.internal("PUT", f"/runtimes/{runtime_id}", body)

    def beat(self, runtime_id: str = "r1", *, incarnation: str = "one", **fields: Any) -> Any:
        """Send a heartbeat; return the reply. ``ready`` and ``gone`` are given as tenant/adapter@version."""
        for name in fields.keys() & {"ready", "gone"}:
            parts = [text.split("@") for text in fields[name]]
            fields[name] = [{"adapter": adapter, "version": int(version)} for adapter, version in parts]
        return self.internal(
            "POST", f"/runtimes/{runtime_id}/heartbeat", {"incarnation": incarnation, **fields}
        )

    def desired(self, runtime_id: str = "r1", *, since: int = 0, wait: float = 0) -> Any:
        """Read what a runtime should serve."""
        return self.internal("GET", f"/runtimes/{runtime_id}/desired", params={"since": since, "wait": wait})


@pytest.fixture(autouse=True)
def _patient_with_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait a minute for a query instead of 2 s: the machine that runs the tests may be slow."""
    monkeypatch.setattr(authenticator, "TIMEOUT_SECONDS", 60.0)
    monkeypatch.setattr(health, "PING_TIMEOUT_SECONDS", 60.0)
    monkeypatch.setattr(routes, "MAX_WAIT_SECONDS", 60.0)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings of a control plane on this test's database."""
    return Settings(
        database_url=database_url,
        artifacts=str(tmp_path / "artifacts"),
        usage_dir=tmp_path / "usage",
        internal_token=INTERNAL_TOKEN,
        admin_key=ADMIN_KEY,
        key_cache_seconds=0.0,
        sweep_every_seconds=3600,
        runtime_lost_after_seconds=3600,
        migrate_on_start=False,
    )


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """The running control plane; exceptions become responses, as in a server."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as started:
        yield started


@pytest.fixture
def cluster(client: TestClient) -> Cluster:
    """HMI's other components, calling the control plane."""
    return Cluster(client)
