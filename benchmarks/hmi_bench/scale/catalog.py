"""The cost of one more adapter in the control plane's catalog, with few and with many adapters.

The transactions are those of the internal API's routes, one a call, on SQLite as in ``hmi up``. Artifacts are
only referred to, since the catalog does not read them.
"""

import hashlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from hmi_control_plane.catalog.paging import PageRequest, list_page
from hmi_control_plane.catalog.resources import get_resource
from hmi_control_plane.catalog.tables import DomainRow, Runtime

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
    """One call of the internal API: median seconds, and the most SQL statements of a call.

    ``busy`` is the processor time of the calling thread, SQLite included, in seconds.
    """

    name: str
    seconds: float
    busy: float
    statements: int


@dataclass(frozen=True)
class CatalogCost:
    """The cost of registering one more adapter in a catalog of ``count``: each call, and all of them."""

    count: int
    steps: list[Step]
    total: Step


Samples = dict[str, list[tuple[float, float, int]]]
"""Seconds, processor seconds and statements of each call, by the call's name."""


class Catalog:
    """A catalog with one Domain and a few runtimes, to which adapters are added as the operator does."""

    def __init__(self, url: str) -> None:
        """Create the tables at ``url``, an SQLAlchemy address, with the Domain and the runtimes."""
        upgrade(url)
        self._database = Database(url)
        self._statements = 0
        self._registered = 0
        event.listen(self._database.engine, "before_cursor_execute", self._count)
        self._domain = self._make_domain()
        for number in range(RUNTIMES):
            with self._database.write() as session:
                name = f"runtime-{number}"
                registration = RuntimeRegistration(
                    url=f"http://{name}", device="cpu", capacity_bytes=CAPACITY, incarnation=name
                )
                runtimes.register(session, name, registration)
        placement.place_missing_replicas(self._database)

    def close(self) -> None:
        """Close the database's connections."""
        self._database.close()

    def measure(self, counts: Sequence[int]) -> list[CatalogCost]:
        """Add adapters up to each of ``counts``, ascending; return the cost of the last few at each."""
        found = []
        for count in counts:
            measured = min(MEASURED, count - self._registered)
            self._fill(count - measured)
            samples: Samples = defaultdict(list)
            for _ in range(measured):
                self._register_one(samples)
            steps = []
            for name, calls in samples.items():
                seconds, busy, statements = zip(*calls, strict=True)
                steps.append(Step(name, statistics.median(seconds), statistics.median(busy), max(statements)))
            total = Step(
                "in all",
                sum(step.seconds for step in steps),
                sum(step.busy for step in steps),
                sum(step.statements for step in steps),
            )
            found.append(CatalogCost(count, steps, total))
        return found

    def _fill(self, count: int) -> None:
        """Add adapters quickly: many in a transaction."""
        while self._registered < count:
            with self._database.write() as session:
                for _ in range(min(_FILLED_AT_ONCE, count - self._registered)):
                    number = self._next()
                    tenants.ensure_tenant(session, _tenant(number))
                    record = adapter_record(number, _tenant(number))
                    adapters.declare_adapter(session, NAMESPACE, adapter_name(number), record)
                    run = runs.create_run(session, adapter_run(number, _tenant(number), self._domain))
                    versions.complete_run(session, run.id, adapter_result(number, self._domain))

    def _register_one(self, samples: Samples) -> None:
        """Add one adapter, call by call, until its runtime has reported it as ready."""
        number = self._next()
        before = self._revisions()
        step = partial(self._timed, samples)
        write = self._write
        record = adapter_record(number, _tenant(number))
        request = adapter_run(number, _tenant(number), self._domain)
        step("ensure the tenant", lambda: write(lambda s: tenants.ensure_tenant(s, _tenant(number))))
        step(
            "declare the adapter",
            lambda: write(lambda s: adapters.declare_adapter(s, NAMESPACE, adapter_name(number), record)),
        )
        run = step("create its run", lambda: write(lambda s: runs.create_run(s, request)))
        result = adapter_result(number, self._domain)
        step(
            "complete it: version and placement",
            lambda: write(lambda s: versions.complete_run(s, run.id, result)),
        )
        (runtime_id,) = [name for name, revision in self._revisions().items() if revision != before[name]]
        state = step(
            "read the desired state", lambda: self._read_desired_state(runtime_id, before[runtime_id])
        )
        (adapter,) = state.adapters
        beat = Heartbeat(
            incarnation=runtime_id, ready=[AdapterVersionRef(adapter=adapter.key, version=adapter.version)]
        )
        step("record that it is ready", lambda: write(lambda s: runtimes.heartbeat(s, runtime_id, beat)))

    def _read_desired_state(self, runtime_id: str, since: int) -> DesiredState:
        """Read the desired state as a runtime's long poll does."""
        with self._database.read() as session:
            if not desired_state.has_changed(session, runtime_id, since):
                raise RuntimeError(f"the desired state of {runtime_id} lacks the adapter placed on it")
        with self._database.read() as session:
            state = desired_state.load_desired_state(session, runtime_id, since)
            acknowledges = not state.full and desired_state.has_acknowledged_removals(
                session, runtime_id, since
            )
        if acknowledges:
            with self._database.write() as session:
                desired_state.delete_acknowledged_removals(session, runtime_id, since)
        return state

    def _timed(self, samples: Samples, name: str, work: Callable[[], T]) -> T:
        """Do ``work`` and record its time and its statements."""
        statements, started, worked = self._statements, time.perf_counter(), time.thread_time()
        done = work()
        seconds, busy = time.perf_counter() - started, time.thread_time() - worked
        samples[name].append((seconds, busy, self._statements - statements))
        return done

    def _write(self, work: Callable[[Session], T]) -> T:
        """Do ``work`` in one write transaction."""
        with self._database.write() as session:
            return work(session)

    def _revisions(self) -> dict[str, int]:
        with self._database.read() as session:
            page = list_page(session, Runtime, Runtime.id, PageRequest(RUNTIMES))
            return {row.id: row.desired_revision for row in page.items}

    def _next(self) -> int:
        self._registered += 1
        return self._registered

    def _make_domain(self) -> DomainVersionView:
        record = domain_record()
        with self._database.write() as session:
            tenants.ensure_tenant(session, NAMESPACE)
            domains.declare_domain(session, NAMESPACE, DOMAIN, record)
            run = runs.create_run(session, domain_run())
            versions.complete_run(session, run.id, domain_result())
        with self._database.read() as session:
            current = domains.build_view(session, get_resource(session, DomainRow, NAMESPACE, DOMAIN)).current
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


def domain_record() -> DomainRecord:
    """Return the catalog's record of the one Domain."""
    return DomainRecord(
        uid="domain-uid", tenant=NAMESPACE, generation=1, spec_digest="sha256:d", base_uri="wheel://base"
    )


def domain_run() -> RunCreate:
    """Return the request for the Domain's run."""
    spec = DomainSpec(base_model=BaseModelRef(uri="wheel://base"), corpus=[DataSource(uri="corpus.jsonl")])
    return RunCreate(
        uid="domain-uid",
        tenant=NAMESPACE,
        spec_digest="sha256:d",
        spec=DomainRunSpec(namespace=NAMESPACE, name=DOMAIN, spec=spec),
    )


def domain_result() -> RunResult:
    """Return the result of the Domain's run."""
    artifacts = [_ref(ArtifactKind.LAYERS, "layers"), _ref(ArtifactKind.TABLE, "table")]
    return RunResult(artifacts=artifacts, base_digest=BASE_DIGEST, split=3, entries=1)


def adapter_record(number: int, tenant: str) -> AdapterRecord:
    """Return the catalog's record of adapter ``number``."""
    return AdapterRecord(
        uid=f"uid-{number}",
        tenant=tenant,
        generation=1,
        spec_digest=f"sha256:{number:064x}",
        domain=f"{NAMESPACE}/{DOMAIN}",
        task_type=TaskType.SEQUENCE_CLASSIFICATION,
    )


def adapter_run(number: int, tenant: str, domain: DomainVersionView) -> RunCreate:
    """Return the request for the run of adapter ``number``."""
    spec = TaskAdapterSpec(
        domain_ref=ObjectRef(name=DOMAIN),
        task=Task(type=TaskType.SEQUENCE_CLASSIFICATION, labels=list(LABELS)),
        data=TaskData(train=DataSource(uri="data.jsonl")),
    )
    return RunCreate(
        uid=f"uid-{number}",
        tenant=tenant,
        spec_digest=f"sha256:{number:064x}",
        spec=AdapterRunSpec(namespace=NAMESPACE, name=adapter_name(number), spec=spec, domain=domain),
    )


def adapter_result(number: int, domain: DomainVersionView) -> RunResult:
    """Return the result of the run of adapter ``number``."""
    return RunResult(
        artifacts=[_ref(ArtifactKind.ADAPTER, adapter_name(number))],
        base_digest=BASE_DIGEST,
        layers_digest=domain.layers.digest,
        labels=list(LABELS),
        metrics={"accuracy": 0.9},
        training_seconds=1.0,
    )


def adapter_name(number: int) -> str:
    """Return the name of adapter ``number``."""
    return f"task-{number:05d}"


def _ref(kind: ArtifactKind, name: str) -> ArtifactRef:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return ArtifactRef(
        kind=kind, uri=f"{kind.lower()}/{digest}", digest=f"sha256:{digest}", bytes=ARTIFACT_BYTES
    )


def _tenant(number: int) -> str:
    return f"tenant-{number:05d}"
