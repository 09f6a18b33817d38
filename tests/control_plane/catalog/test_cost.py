"""The cost of an adapter, in statements and database steps, does not depend on the number of adapters."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import event, insert

from hmi_api.internal.catalog import AdapterRecord
from hmi_api.internal.runs import RunCreate, RunProgress, RunResult, RunState
from hmi_api.internal.runtimes import AdapterVersionRef, Heartbeat
from hmi_control_plane.catalog import adapters, desired_state, runs, runtimes, tenants, versions
from hmi_control_plane.catalog.database import Database, utc_now
from hmi_control_plane.catalog.paging import PageRequest, list_page
from hmi_control_plane.catalog.resources import find_resource, get_resource
from hmi_control_plane.catalog.tables import (
    AdapterRow,
    AdapterVersion,
    Artifact,
    LoadReport,
    Placement,
    TrainingRun,
)

_FEW, _MANY = 10, 2_000


@dataclass
class Cost:
    """SQL statements, and steps of SQLite's virtual machine, which grow with the rows touched."""

    statements: int = 0
    steps: int = 0


@contextmanager
def _counted(database: Database) -> Iterator[Cost]:
    cost = Cost()

    def count_statement(*_arguments: Any) -> None:
        cost.statements += 1

    def count_step() -> int:
        cost.steps += 1
        return 0

    def watch(connection: sqlite3.Connection, *_arguments: Any) -> None:
        connection.set_progress_handler(count_step, 1)

    def unwatch(connection: sqlite3.Connection, *_arguments: Any) -> None:
        connection.set_progress_handler(None, 0)

    listeners = [("before_cursor_execute", count_statement), ("checkout", watch), ("checkin", unwatch)]
    for name, listener in listeners:
        event.listen(database.engine, name, listener)
    try:
        yield cost
    finally:
        for name, listener in listeners:
            event.remove(database.engine, name, listener)


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """SQLite alone: only it reports its number of steps. The queries are the same on both."""
    return sqlite_url


def _populate(cluster: Any, database: Database, first: int, last: int) -> None:
    """Insert adapters as if they had been declared, trained, placed and loaded one by one."""
    cluster.adapter("model")
    with database.write() as session:
        model = find_resource(session, AdapterRow, "acme", "model")
        assert model is not None
        placed = session.get_one(Placement, ("r1", "acme/model"))
        run = session.query(TrainingRun).filter_by(uid=model.uid).one()
        rows = range(first, last)
        common = {"created_at": utc_now(), "spec_digest": model.spec_digest}
        session.execute(
            insert(Artifact),
            [
                {"digest": f"sha256:{i}", "kind": "Adapter", "uri": f"a/{i}", "bytes": 10, "refcount": 1}
                | {"created_at": utc_now()}
                for i in rows
            ],
        )
        session.execute(
            insert(AdapterRow),
            [
                common
                | {"id": i, "tenant": "acme", "namespace": "acme", "name": f"n{i}", "uid": f"u{i}"}
                | {"generation": 1, "domain": model.domain, "task_type": model.task_type, "replicas": 1}
                | {"pinned": False, "current_version": 1, "missing_replicas": 0}
                for i in rows
            ],
        )
        session.execute(
            insert(AdapterVersion),
            [
                common
                | {"adapter_id": i, "version": 1, "artifact_digest": f"sha256:{i}", "labels": ["no", "yes"]}
                | {"layers_digest": run.spec["domain"]["layers"]["digest"], "metrics": {}}
                | {"gate_passed": True, "gate_message": ""}
                for i in rows
            ],
        )
        session.execute(
            insert(Placement),
            [
                {"runtime_id": "r1", "adapter_key": f"acme/n{i}", "adapter_id": i, "bytes": 10}
                | {"domain_version_id": placed.domain_version_id, "revision": placed.revision}
                for i in rows
            ],
        )
        session.execute(
            insert(LoadReport),
            [
                {"runtime_id": "r1", "adapter_id": i, "version": 1, "state": "Ready"}
                | {"reason": "", "message": "", "updated_at": utc_now()}
                for i in rows
            ],
        )
        session.execute(
            insert(TrainingRun),
            [
                common
                | {"id": f"{i:032x}", "uid": f"u{i}", "attempt": 0, "tenant": "acme", "kind": "adapter"}
                | {"namespace": "acme", "name": f"n{i}", "state": RunState.SUCCEEDED, "spec": run.spec}
                for i in rows
            ],
        )


def _register_one_more(cluster: Any, database: Database, name: str) -> dict[str, Cost]:
    """Declare, train, place, load and delete one adapter; return the cost of each step."""
    record = AdapterRecord.model_validate(cluster.adapter_record(name))
    spec = cluster.adapter_run("model")["spec"] | {"name": name}
    wanted = RunCreate.model_validate(
        {"uid": record.uid, "tenant": "acme", "specDigest": record.spec_digest, "spec": spec}
    )
    artifact = {"kind": "Adapter", "uri": f"a/{name}", "digest": f"sha256:{name}", "bytes": 10}
    result = RunResult.model_validate({"artifacts": [artifact], "baseDigest": "sha256:base", "labels": ["a"]})
    costs: dict[str, Cost] = {}
    with database.read() as session:
        since = desired_state.load_desired_state(session, "r1", 0).revision

    @contextmanager
    def step(label: str, *, write: bool) -> Iterator[Any]:
        with _counted(database) as cost, database.write() if write else database.read() as session:
            yield session
        costs[label] = cost

    with step("declare", write=True) as session:
        adapters.declare_adapter(session, "acme", name, record)
    with step("run", write=True) as session:
        run = runs.create_run(session, wanted)
    with step("progress", write=True) as session:
        runs.report_progress(session, run.id, RunProgress(stage="training", step=1, total=2))
    with step("complete", write=True) as session:
        versions.complete_run(session, run.id, result)
    with step("desired", write=False) as session:
        assert len(desired_state.load_desired_state(session, "r1", since).adapters) == 1
    with step("acknowledge", write=False) as session:
        desired_state.has_acknowledged_removals(session, "r1", since)
    with step("heartbeat", write=True) as session:
        beat = Heartbeat(incarnation="one", ready=[AdapterVersionRef(adapter=f"acme/{name}", version=1)])
        assert runtimes.heartbeat(session, "r1", beat).reply.known
    with step("view", write=False) as session:
        assert adapters.build_view(session, get_resource(session, AdapterRow, "acme", name)).loaded_on == [
            "r1"
        ]
    with step("tenant", write=True) as session:
        tenants.ensure_tenant(session, "acme")
    with step("page", write=False) as session:
        list_page(session, AdapterRow, AdapterRow.id, PageRequest(5), tenant="acme")
    with step("delete", write=True) as session:
        adapters.delete_adapter(session, "acme", name)
    return costs


def test_the_cost_of_one_more_adapter_does_not_depend_on_their_number(
    cluster: Any, database: Database
) -> None:
    cluster.runtime(capacity=10**9)
    cluster.domain()
    _populate(cluster, database, 1_000, 1_000 + _FEW)
    few = _register_one_more(cluster, database, "late-one")
    cluster.internal("DELETE", "/adapters/acme/model")
    _populate(cluster, database, 2_000, 2_000 + _MANY)
    many = _register_one_more(cluster, database, "late-two")
    for label, cost in many.items():
        assert cost.statements == few[label].statements, label
        # A deeper tree may take a few steps more; a scan of 2,000 rows would take thousands.
        assert cost.steps <= few[label].steps * 1.5 + 100, (label, json.dumps([cost.steps, few[label].steps]))
