"""What the control plane's catalog does for one more adapter, when it has few and when it has many.

Transactions are those of the internal API's routes, one a call, on SQLite as ``hmi up`` uses it. Artifacts
are named and not made: the catalog never reads them.
"""

import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from sqlalchemy import event
from sqlalchemy.orm import Session

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.internal.catalog import AdapterRecord, DomainRecord, DomainVersionView
from hmi_api.internal.runs import AdapterRunSpec, DomainRunSpec, RunCreate, RunResult
from hmi_api.internal.runtimes import AdapterVersionRef, DesiredState, Heartbeat, RuntimeRegistration
from hmi_api.resources.common import DataSource, ObjectRef
from hmi_api.resources.domain import BaseModelRef, DomainSpec
from hmi_api.resources.task_adapter import Task, TaskAdapterSpec, TaskData, TaskType
from hmi_control_plane.catalog import (
    adapters,
    desired_state,
    domains,
    placement,
    runs,
    runtimes,
    tenants,
    versions,
)
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.migrate import upgrade

NAMESPACE = "bench"
DOMAIN = "domain"
BASE_DIGEST = "sha256:" + "0" * 64
LABELS = ("yes", "no")
RUNTIMES = 4
CAPACITY = 1 << 50
ARTIFACT_BYTES = 750_000
MEASURED = 20
_FILLED_AT_ONCE = 100

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One call of the internal API: median seconds, and the most SQL statements that it took.

    ``busy`` are the seconds of this thread alone, SQLite's included: a loaded machine does not change them.
    """

    name: str
    seconds: float
    busy: float
    statements: int


@dataclass(frozen=True)
class CatalogCost:
    """What registering one more adapter costs when ``count`` are there."""

    count: int
    steps: list[Step]

    @property
    def seconds(self) -> float:
        """All calls together."""
        return sum(step.seconds for step in self.steps)

    @property
    def busy(self) -> float:
        """All calls together."""
        return sum(step.busy for step in self.steps)

    @property
    def statements(self) -> int:
        """All calls together."""
        return sum(step.statements for step in self.steps)


@dataclass
class _Samples:
    seconds: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    statements: list[int] = field(default_factory=list)


class Catalog:
    """A catalog with one Domain and a few runtimes; adapters are added as the reconciler adds them."""

    def __init__(self, url: str) -> None:
        """Make the tables at ``url``, an SQLAlchemy address, and what adapters stand on."""
        upgrade(url)
        self._database = Database(url)
        self._statements = 0
        self._registered = 0
        event.listen(self._database.engine, "before_cursor_execute", self._count)
        self._domain = self._make_domain()
        for number in range(RUNTIMES):
            with self._database.write() as session:
                runtimes.register(session, f"runtime-{number}", _registration(number))
        placement.place_missing_replicas(self._database)

    def close(self) -> None:
        """Close the database's connections."""
        self._database.close()

    def measure(self, counts: Sequence[int]) -> list[CatalogCost]:
        """Add adapters up to each of ``counts``, ascending, and return what the last few of each cost."""
        found = []
        for count in counts:
            measured = min(MEASURED, count - self._registered)
            self._fill(count - measured)
            samples: dict[str, _Samples] = {}
            for _ in range(measured):
                self._register_one(samples)
            steps = [
                Step(
                    name,
                    statistics.median(sample.seconds),
                    statistics.median(sample.busy),
                    max(sample.statements),
                )
                for name, sample in samples.items()
            ]
            found.append(CatalogCost(count, steps))
        return found

    def _fill(self, count: int) -> None:
        """Add adapters quickly: the same work, many in a transaction."""
        while self._registered < count:
            with self._database.write() as session:
                for _ in range(min(_FILLED_AT_ONCE, count - self._registered)):
                    number = self._next()
                    tenants.ensure_tenant(session, _tenant(number))
                    adapters.declare_adapter(session, NAMESPACE, _name(number), _record(number))
                    run = runs.create_run(session, self._run(number))
                    versions.complete_run(session, run.id, _result(number, self._domain))

    def _register_one(self, samples: dict[str, _Samples]) -> None:
        """Add one adapter, call by call, up to the runtimes that read of it and say that they serve it."""
        number = self._next()
        before = self._revisions()
        step = partial(self._timed, samples)
        write = self._write
        step("ensure the tenant", lambda: write(lambda s: tenants.ensure_tenant(s, _tenant(number))))
        step(
            "declare the adapter",
            lambda: write(lambda s: adapters.declare_adapter(s, NAMESPACE, _name(number), _record(number))),
        )
        run = step("create its run", lambda: write(lambda s: runs.create_run(s, self._run(number))))
        result = _result(number, self._domain)
        step(
            "complete it: version and placement",
            lambda: write(lambda s: versions.complete_run(s, run.id, result)),
        )
        (runtime_id,) = [name for name, revision in self._revisions().items() if revision != before[name]]
        state = step("read the runtime's news", lambda: self._read_news(runtime_id, before[runtime_id]))
        (told,) = state.adapters
        beat = Heartbeat(
            incarnation=runtime_id, ready=[AdapterVersionRef(adapter=told.key, version=told.version)]
        )
        step("note that it is served", lambda: write(lambda s: runtimes.heartbeat(s, runtime_id, beat)))

    def _read_news(self, runtime_id: str, since: int) -> DesiredState:
        """Read as the long poll does."""
        with self._database.read() as session:
            if not desired_state.has_changed(session, runtime_id, since):
                raise RuntimeError(f"{runtime_id} was told nothing of the adapter placed on it")
        with self._database.read() as session:
            state = desired_state.load_desired_state(session, runtime_id, since)
            acknowledges = not state.full and desired_state.has_acknowledged_removals(
                session, runtime_id, since
            )
        if acknowledges:
            with self._database.write() as session:
                desired_state.delete_acknowledged_removals(session, runtime_id, since)
        return state

    def _timed(self, samples: dict[str, _Samples], name: str, work: Callable[[], T]) -> T:
        """Do ``work`` and note its time and its statements."""
        sample = samples.setdefault(name, _Samples())
        statements, started, worked = self._statements, time.perf_counter(), time.thread_time()
        done = work()
        sample.seconds.append(time.perf_counter() - started)
        sample.busy.append(time.thread_time() - worked)
        sample.statements.append(self._statements - statements)
        return done

    def _write(self, work: Callable[[Session], T]) -> T:
        """Do ``work`` in one write transaction."""
        with self._database.write() as session:
            return work(session)

    def _revisions(self) -> dict[str, int]:
        with self._database.read() as session:
            page = runtimes.list_runtimes(session, limit=RUNTIMES, cursor=None)
            return {row.id: row.desired_revision for row in page.items}

    def _next(self) -> int:
        self._registered += 1
        return self._registered

    def _run(self, number: int) -> RunCreate:
        spec = TaskAdapterSpec(
            domain_ref=ObjectRef(name=DOMAIN),
            task=Task(type=TaskType.SEQUENCE_CLASSIFICATION, labels=list(LABELS)),
            data=TaskData(train=DataSource(uri="data.jsonl")),
        )
        return RunCreate(
            uid=f"uid-{number}",
            tenant=_tenant(number),
            spec_digest=f"sha256:{number:064x}",
            spec=AdapterRunSpec(namespace=NAMESPACE, name=_name(number), spec=spec, domain=self._domain),
        )

    def _make_domain(self) -> DomainVersionView:
        record = DomainRecord(
            uid="domain-uid", tenant=NAMESPACE, generation=1, spec_digest="sha256:d", base_uri="wheel://base"
        )
        spec = DomainSpec(
            base_model=BaseModelRef(uri="wheel://base"), corpus=[DataSource(uri="corpus.jsonl")]
        )
        layers, table = _ref(ArtifactKind.LAYERS, "layers"), _ref(ArtifactKind.TABLE, "table")
        with self._database.write() as session:
            tenants.ensure_tenant(session, NAMESPACE)
            domains.declare_domain(session, NAMESPACE, DOMAIN, record)
            wanted = RunCreate(
                uid=record.uid,
                tenant=NAMESPACE,
                spec_digest=record.spec_digest,
                spec=DomainRunSpec(namespace=NAMESPACE, name=DOMAIN, spec=spec),
            )
            run = runs.create_run(session, wanted)
            result = RunResult(artifacts=[layers, table], base_digest=BASE_DIGEST, split=3, entries=1)
            versions.complete_run(session, run.id, result)
        with self._database.read() as session:
            current = domains.get_domain_view(session, NAMESPACE, DOMAIN).current
        if current is None:
            raise RuntimeError("the Domain's run made no version")
        return current

    def _count(self, *_: object) -> None:
        self._statements += 1


def measure_catalog(folder: Path, counts: Sequence[int]) -> list[CatalogCost]:
    """Return the cost of one more adapter at each of ``counts`` in a new SQLite catalog in ``folder``."""
    catalog = Catalog(f"sqlite:///{folder / 'catalog.db'}")
    try:
        return catalog.measure(sorted(counts))
    finally:
        catalog.close()


def _registration(number: int) -> RuntimeRegistration:
    name = f"runtime-{number}"
    return RuntimeRegistration(url=f"http://{name}", device="cpu", capacity_bytes=CAPACITY, incarnation=name)


def _record(number: int) -> AdapterRecord:
    return AdapterRecord(
        uid=f"uid-{number}",
        tenant=_tenant(number),
        generation=1,
        spec_digest=f"sha256:{number:064x}",
        domain=f"{NAMESPACE}/{DOMAIN}",
        task_type=TaskType.SEQUENCE_CLASSIFICATION,
    )


def _result(number: int, domain: DomainVersionView) -> RunResult:
    return RunResult(
        artifacts=[_ref(ArtifactKind.ADAPTER, _name(number))],
        base_digest=BASE_DIGEST,
        layers_digest=domain.layers.digest,
        labels=list(LABELS),
        metrics={"accuracy": 0.9},
        training_seconds=1.0,
    )


def _ref(kind: ArtifactKind, name: str) -> ArtifactRef:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return ArtifactRef(
        kind=kind, uri=f"{kind.lower()}/{digest}", digest=f"sha256:{digest}", bytes=ARTIFACT_BYTES
    )


def _tenant(number: int) -> str:
    return f"tenant-{number:05d}"


def _name(number: int) -> str:
    return f"task-{number:05d}"
