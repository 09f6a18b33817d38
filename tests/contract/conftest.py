"""The contract of the internal API, tested on the real control plane (both databases) and on the fake."""

import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_control_plane import TOKEN, FakeControlPlane
from postgres_server import PostgresServer
from serving import serving
from small_artifacts import publish

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.internal.catalog import AdapterRecord, AdapterView, DomainRecord, DomainView, LoadError
from hmi_api.internal.client import ONE_ATTEMPT, ControlPlaneClient
from hmi_api.internal.refreshes import RefreshResult
from hmi_api.internal.runs import RunCreate, RunResult, RunView
from hmi_api.internal.runtimes import (
    AdapterVersionRef,
    Heartbeat,
    HeartbeatReply,
    LoadFailure,
    RuntimeRegistration,
)
from hmi_api.internal.trainer_client import TrainerClient
from hmi_api.names import Tenant
from hmi_api.security.bearer import TokenSource
from hmi_control_plane.app import create_app
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import Base
from hmi_control_plane.settings import Part, Settings

HOTEL, TOPIC = "shop/hotel", "shop/topic"


@dataclass
class Contract:
    """Calls a control plane through the real clients, as the operator, trainers and runtimes do."""

    url: str
    client: ControlPlaneClient
    open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    trainers: dict[str, TrainerClient] = field(default_factory=dict)

    def send(self, method: str, path: str, body: Any = None, *, token: str | None = TOKEN) -> httpx.Response:
        """Send a request that no client would send."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = f"{self.url}/internal/v1{path}"
        return httpx.request(method, url, json=body, headers=headers, trust_env=False)

    # --- as the operator ------------------------------------------------------------------------------

    async def declare_domain(self, key: str = HOTEL, *, spec: str = "1", **changes: Any) -> None:
        """Declare a Domain in the tenant named like its namespace."""
        namespace, name = key.split("/")
        record = DomainRecord(
            uid=f"uid-{name}", tenant=namespace, generation=1, spec_digest=spec, base_uri="wheel://m"
        )
        await self.client.ensure_tenant(Tenant(namespace))
        await self.client.declare("Domain", key, record.model_copy(update=changes))

    async def declare_adapter(self, key: str = TOPIC, *, spec: str = "1", **changes: Any) -> None:
        """Declare a TaskAdapter in the tenant named like its namespace."""
        namespace, name = key.split("/")
        record = AdapterRecord(
            uid=f"uid-{name}",
            tenant=namespace,
            generation=1,
            spec_digest=spec,
            domain=HOTEL,
            task_type="SequenceClassification",
        )
        await self.client.ensure_tenant(Tenant(namespace))
        await self.client.declare("TaskAdapter", key, record.model_copy(update=changes))

    async def domain_run(self, key: str = HOTEL, *, spec: str = "1", **changes: Any) -> RunView:
        """Create a Domain's run; ``parent`` is the version that it extends."""
        namespace, name = key.split("/")
        fields = {"baseModel": {"uri": "wheel://m"}, "corpus": [{"uri": "corpus.jsonl"}], "split": 3}
        body = {"kind": "domain", "namespace": namespace, "name": name, "spec": fields}
        return await self._run(namespace, name, spec, body | {"parent": changes.pop("parent", None)}, changes)

    async def refresh_run(self, key: str = HOTEL, *, plot: Any = None, **changes: Any) -> RunView:
        """Create a run that refreshes the table of a Domain's current version."""
        namespace, name = key.split("/")
        current = (await self.domain(key)).current
        assert current is not None
        fields = {"baseModel": {"uri": "wheel://m"}, "corpus": [{"uri": "corpus.jsonl"}], "plot": plot or {}}
        start = {
            "current": current.model_dump(mode="json", by_alias=True),
            "cause": "Schedule",
            "hitRate": 0.4,
        }
        refresh = start | changes.pop("refresh", {})
        body = {"kind": "domain", "namespace": namespace, "name": name, "spec": fields, "refresh": refresh}
        return await self._run(namespace, name, f"refresh-{current.version}", body, changes)

    def finish_refresh(self, run: RunView, content: str = "", **changes: Any) -> RunView:
        """Publish the table of a refresh run and complete it; return the run."""
        table = self.publish(run, ArtifactKind.TABLE, f'"table {content or run.id}"'.encode())
        result = RunResult(
            artifacts=[table],
            base_digest="sha256:b",
            layers_digest=run.spec.refresh.current.layers.digest,
            entries=6,
            coverage=0.7,
            refresh=RefreshResult(windows_in=3, windows_out=2),
        )
        self.trainer(run).complete_run(result.model_copy(update=changes))
        return self.trainer(run).run()

    async def adapter_run(self, key: str = TOPIC, *, spec: str = "1", **changes: Any) -> RunView:
        """Create a TaskAdapter's run on the current version of its Domain."""
        namespace, name = key.split("/")
        domain = await self.domain()
        fields = {
            "domainRef": {"name": "hotel", "namespace": "shop"},
            "task": {"type": "SequenceClassification"},
            "data": {"train": {"uri": "rows.jsonl"}},
        }
        body = {"kind": "adapter", "namespace": namespace, "name": name, "spec": fields}
        body["domain"] = domain.current.model_dump(mode="json", by_alias=True) if domain.current else None
        return await self._run(namespace, name, spec, body, changes)

    async def _run(
        self, tenant: str, name: str, spec_digest: str, spec: Any, changes: dict[str, Any]
    ) -> RunView:
        wanted = {"uid": f"uid-{name}", "tenant": tenant, "specDigest": spec_digest, "spec": spec}
        return await self.client.create_run(RunCreate.model_validate(wanted | changes))

    async def domain(self, key: str = HOTEL) -> DomainView:
        """Return a Domain that must be there."""
        view = await self.client.domain(key)
        assert view is not None
        return view

    async def adapter(self, key: str = TOPIC) -> AdapterView:
        """Return a TaskAdapter that must be there."""
        view = await self.client.adapter(key)
        assert view is not None
        return view

    # --- as a trainer ---------------------------------------------------------------------------------

    def trainer(self, run: RunView | str) -> TrainerClient:
        """Return the client of a run's trainer."""
        run_id = run if isinstance(run, str) else run.id
        if run_id not in self.trainers:
            patience = {"report_patience": 0.0, "transfer_patience": 0.0}
            client = TrainerClient(self.url, TokenSource(TOKEN), run_id, **patience)
            self.trainers[run_id] = self.open.enter_context(client)
        return self.trainers[run_id]

    def publish(self, run: RunView, kind: ArtifactKind, content: bytes) -> ArtifactRef:
        """Upload a file and make an artifact of it."""
        return publish(self.trainer(run), kind, content)

    def finish(self, run: RunView, *, name: str = "", **changes: Any) -> RunView:
        """Publish the artifacts of a run, named by ``name``, and complete it; return the run."""
        is_domain = run.spec.kind == "domain"
        kinds = [ArtifactKind.LAYERS, ArtifactKind.TABLE] if is_domain else [ArtifactKind.ADAPTER]
        made = [self.publish(run, kind, f'"{kind} {name or run.id}"'.encode()) for kind in kinds]
        fields = {"split": 3, "entries": 5, "coverage": 0.5} if is_domain else {"labels": ["no", "yes"]}
        result = RunResult(artifacts=made, base_digest="sha256:b", metrics={"accuracy": 0.9}, **fields)
        self.trainer(run).complete_run(result.model_copy(update=changes))
        return self.trainer(run).run()

    async def published_domain(self, key: str = HOTEL, *, spec: str = "1", name: str = "") -> DomainView:
        """Declare and train a Domain."""
        await self.declare_domain(key, spec=spec)
        self.finish(await self.domain_run(key, spec=spec), name=name)
        return await self.domain(key)

    async def published_adapter(self, key: str = TOPIC, *, spec: str = "1", **changes: Any) -> AdapterView:
        """Declare and train a TaskAdapter; on a published Domain."""
        await self.declare_adapter(key, spec=spec, **changes)
        self.finish(await self.adapter_run(key, spec=spec))
        return await self.adapter(key)

    # --- as a runtime ---------------------------------------------------------------------------------

    async def register(self, name: str = "r1", *, incarnation: str = "one") -> None:
        """Register a runtime."""
        registration = RuntimeRegistration(
            url=f"http://{name}", device="cpu", capacity_bytes=1 << 30, incarnation=incarnation
        )
        await self.client.register_runtime(name, registration)

    async def beat(
        self,
        name: str = "r1",
        *,
        ready: list[str] | None = None,
        gone: list[str] | None = None,
        failed: dict[str, LoadError] | None = None,
        serves: bool = False,
        **fields: Any,
    ) -> HeartbeatReply:
        """Send a heartbeat; versions are named ``tenant/adapter@version``."""
        beat = Heartbeat(
            incarnation=fields.pop("incarnation", "one"),
            ready=[AdapterVersionRef(**version(text)) for text in ready or []],
            gone=[AdapterVersionRef(**version(text)) for text in gone or []],
            failed=[
                LoadFailure(**version(text), **dict(why), serves=serves)
                for text, why in (failed or {}).items()
            ],
            **fields,
        )
        return await self.client.heartbeat(name, beat)


def version(text: str) -> dict[str, Any]:
    """Read ``tenant/adapter@version``."""
    adapter, _, number = text.partition("@")
    return {"adapter": adapter, "version": int(number)}


@pytest.fixture
def address(request: pytest.FixtureRequest) -> str:
    """The address of the control plane under test."""
    return str(request.getfixturevalue(f"{request.param}_address"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test of this folder against all three control planes."""
    if "address" in metafunc.fixturenames:
        postgres = pytest.param("postgres", marks=pytest.mark.postgres)
        metafunc.parametrize("address", ["sqlite", postgres, "fake"], indirect=True)


@contextlib.contextmanager
def real_control_plane(database_url: str, folder: Path) -> Iterator[str]:
    """Serve the real control plane; gives its address."""
    settings = Settings(
        database_url=database_url,
        artifacts=str(folder / "artifacts"),
        usage_dir=folder / "usage",
        internal_token=TOKEN,
        admin_key="admin-key-of-the-tests",
        sweep_every_seconds=3600,
        runtime_lost_after_seconds=3600,
        migrate_on_start=False,
    )
    with serving(create_app(settings, Part.CONTROL_PLANE)) as url:
        yield url


def empty(database_url: str) -> None:
    """Delete all rows of a catalog."""
    database = Database(database_url)
    with database.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
    database.close()


@pytest.fixture(scope="session")
def sqlite_control_plane(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """The real control plane on SQLite for the whole session, and the address of its database."""
    folder = tmp_path_factory.mktemp("control-plane")
    shutil.copyfile(sqlite_template, folder / "catalog.db")
    database_url = f"sqlite:///{folder / 'catalog.db'}"
    with real_control_plane(database_url, folder) as url:
        yield url, database_url


@pytest.fixture(scope="session")
def postgres_control_plane(
    postgres_server: PostgresServer, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """The real control plane on PostgreSQL for the whole session, and the address of its database."""
    postgres_server.execute(f"CREATE DATABASE contract TEMPLATE {postgres_template}")
    database_url = postgres_server.url("contract")
    with real_control_plane(database_url, tmp_path_factory.mktemp("control-plane")) as url:
        yield url, database_url


@pytest.fixture
def sqlite_address(sqlite_control_plane: tuple[str, str]) -> Iterator[str]:
    """The real control plane with an empty catalog on SQLite."""
    url, database_url = sqlite_control_plane
    yield url
    empty(database_url)


@pytest.fixture
def postgres_address(postgres_control_plane: tuple[str, str]) -> Iterator[str]:
    """The real control plane with an empty catalog on PostgreSQL."""
    url, database_url = postgres_control_plane
    yield url
    empty(database_url)


@pytest.fixture(scope="session")
def fake_server() -> Iterator[tuple[str, list[FakeControlPlane]]]:
    """A server for the whole session that serves the newest of these fakes."""
    fakes: list[FakeControlPlane] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await fakes[-1].app(scope, receive, send)

    with serving(app, lifespan="off") as url:
        yield url, fakes


@pytest.fixture
def fake_address(fake_server: tuple[str, list[FakeControlPlane]]) -> str:
    """A new fake control plane."""
    url, fakes = fake_server
    fakes.append(FakeControlPlane())
    return url


@pytest.fixture
async def plane(address: str) -> AsyncIterator[Contract]:
    """The control plane under test, as its clients see it."""
    async with ControlPlaneClient(address, TOKEN, retry=ONE_ATTEMPT) as client:
        contract = Contract(address, client)
        with contract.open:
            yield contract


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
