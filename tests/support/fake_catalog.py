"""The catalog of the fake control plane: the internal API over dictionaries.

It raises ``Refused`` with the status and the reason of the real one. ``tests/contract`` compares both.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fake_artifacts import FakeArtifacts

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.internal.catalog import (
    AdapterRecord,
    AdapterVersionView,
    AdapterView,
    DomainRecord,
    DomainVersionView,
    DomainView,
    EarlierVersion,
    LoadError,
    PublishAgain,
    RecordKey,
    RecordPage,
    Revocation,
)
from hmi_api.internal.client import Refused
from hmi_api.internal.refreshes import (
    Refreshes,
    RefreshResult,
    RefreshRun,
    RefreshSpec,
    RestoreTable,
    TableChange,
    TableVersion,
)
from hmi_api.internal.runs import (
    DomainRunSpec,
    RunCreate,
    RunFailure,
    RunPod,
    RunProgress,
    RunResult,
    RunState,
    RunView,
)

FINAL = (RunState.SUCCEEDED, RunState.FAILED)


@dataclass
class StoredDomain:
    """A Domain, all its versions and the current one."""

    record: DomainRecord
    versions: list[DomainVersionView] = field(default_factory=list)
    current: DomainVersionView | None = None
    last_version: int = 0
    order: int = 0
    changes: dict[int, TableChange] = field(default_factory=dict)
    """By version: how its table came from the one before it."""
    created: dict[int, datetime] = field(default_factory=dict)

    @property
    def tables(self) -> list[DomainVersionView]:
        """The versions with the layers and the spec of the current one, the newest first."""
        current = self.current
        if current is None:
            return []
        same = [
            one
            for one in self.versions
            if (one.layers, one.spec_digest) == (current.layers, current.spec_digest)
        ]
        return same[::-1]


@dataclass
class StoredAdapter:
    """A TaskAdapter, all its versions and the current one, and the ids of the runtimes it is placed on."""

    record: AdapterRecord
    versions: list[AdapterVersionView] = field(default_factory=list)
    current: AdapterVersionView | None = None
    last_version: int = 0
    order: int = 0
    placed: list[str] = field(default_factory=list)
    revoked_at: datetime | None = None
    withdrawn: Revocation | None = None


@dataclass(frozen=True)
class LoadReport:
    """A runtime's last report on one version: loaded, or why not; ``order`` grows from report to report."""

    runtime: str
    version: int
    failure: LoadError | None
    order: int
    serves: bool
    """Despite a failure, if it was to take another table."""


class FakeCatalog:
    """Resources, runs, versions and artifacts; ``on_change`` is called when placements may have to change."""

    def __init__(self, on_change: Callable[[], None], reports_of: Callable[[str], list[LoadReport]]) -> None:
        self.tenants: set[str] = set()
        self.domains: dict[str, StoredDomain] = {}
        self.adapters: dict[str, StoredAdapter] = {}
        self.runs: dict[str, RunView] = {}
        self.refresh_runs: dict[str, datetime] = {}
        """When each refresh run was created, the oldest first."""
        self.created_runs: list[str] = []
        """Ids of all runs that were ever created: those of deleted resources are in ``runs`` no more."""
        self.pods: dict[str, list[RunPod]] = {}
        self.artifacts = FakeArtifacts()
        self.page_items = 500
        self._declared = 0
        self._on_change = on_change
        self._reports_of = reports_of

    # --- resources ------------------------------------------------------------------------------------

    def declare(self, table: dict[str, Any], key: str, record: DomainRecord | AdapterRecord) -> None:
        """Declare a resource; one of another uid takes over the versions, or replaces the resource."""
        self._require_tenant(record.tenant)
        row = table.get(key)
        if row is not None and row.record.uid != record.uid:
            if _is_same_resource(row.record, record):
                self._give_runs(row.record.uid, record.uid)
            else:
                self.delete(table, key)
                row = None
        if row is None:
            if isinstance(record, AdapterRecord):
                self._require_free_name(key, record.tenant)
            stored = StoredAdapter if isinstance(record, AdapterRecord) else StoredDomain
            self._declared += 1
            row = table[key] = stored(record, order=self._declared)
        elif row.record.tenant != record.tenant:
            raise Refused(409, "TenantChanged", f"{key} belongs to tenant {row.record.tenant}.")
        row.record = record
        if row.current is not None:
            self._on_change()

    def delete(self, table: dict[str, Any], key: str, uid: str | None = None) -> None:
        """Delete a resource with its runs; runs that are not over fail."""
        row = table.get(key)
        if row is None or uid not in (None, row.record.uid):
            return
        users = [
            name for name, one in self.adapters.items() if one.record.domain == key and not one.withdrawn
        ]
        if table is self.domains and users:
            raise Refused(409, "DomainInUse", f"Delete the TaskAdapters on Domain {key} first: {users}.")
        del table[key]
        for run in self._runs_of(row.record.uid):
            if run.state in FINAL:
                del self.runs[run.id]
            else:
                self._fail(run, RunFailure(reason="ResourceDeleted", message="The resource was deleted."))
        self._on_change()

    def page(self, table: dict[str, Any], cursor: str | None, domain: str | None) -> RecordPage:
        """Return a page of the resources, of TaskAdapters those on ``domain`` alone."""

        def position(key: str) -> str:
            return key if table is self.domains else f"{table[key].order:09d}"

        names = [key for key, row in table.items() if domain in (None, getattr(row.record, "domain", None))]
        left = sorted((key for key in names if position(key) > (cursor or "")), key=position)
        items = [RecordKey(key=key, uid=table[key].record.uid) for key in left[: self.page_items]]
        has_more = len(left) > len(items)
        return RecordPage(items=items, next_cursor=position(items[-1].key) if has_more else None)

    def domain_view(self, key: str) -> DomainView:
        """Return a Domain with its current version."""
        row = _found(self.domains, key, "Domain")
        return DomainView(record=row.record, current=row.current)

    def adapter_view(self, key: str, running: int = 0) -> AdapterView:
        """Return a TaskAdapter, and where it is; ``running`` counts the runtimes that take placements."""
        row = _found(self.adapters, key, "Adapter")
        reports = self._reports_of(key)
        current = row.current.version if row.current else None
        of_current = [report for report in reports if report.version == current]
        loaded_on = sorted(report.runtime for report in of_current if report.serves)
        by_weight = sorted(of_current, key=lambda report: not report.serves)
        failures = [report.failure for report in by_weight if report.failure is not None]
        earlier: dict[str, int] = {}
        for report in reports:
            if report.serves and report.runtime not in loaded_on:
                earlier[report.runtime] = max(report.version, earlier.get(report.runtime, 0))
        return AdapterView(
            record=row.record,
            current=row.current,
            scheduled_on=sorted(row.placed),
            loaded_on=loaded_on,
            earlier=[EarlierVersion(runtime=name, version=one) for name, one in sorted(earlier.items())],
            load_error=failures[-1] if failures else None,
            runtimes=running if row.current and not row.placed else None,
            revoked_at=row.revoked_at,
            withdrawn=row.withdrawn is not None,
            etag=self.etag(key),
        )

    def etag(self, key: str) -> str:
        """Return a TaskAdapter's ETag."""
        row = self.adapters[key]
        reports = [
            (one.runtime, one.version, one.serves, one.failure and one.failure.model_dump())
            for one in self._reports_of(key)
        ]
        content = [row.record.uid, row.current and row.current.version, sorted(row.placed), reports]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def revoke(self, key: str, revocation: Revocation) -> None:
        """Revoke a TaskAdapter's use of its Domain; drop its versions if the grace time is over."""
        row = _found(self.adapters, key, "Adapter")
        row.revoked_at = row.revoked_at or datetime.now(UTC)
        if revocation.withdraw:
            row.withdrawn, row.current, row.versions, row.last_version = revocation, None, [], 0
            self._on_change()

    def restore(self, key: str) -> None:
        """Take back a revocation."""
        row = _found(self.adapters, key, "Adapter")
        row.revoked_at = row.withdrawn = None

    # --- runs and versions ----------------------------------------------------------------------------

    def create_run(self, wanted: RunCreate) -> RunView:
        """Return the run of this uid, spec digest and attempt; create it if there is none."""
        self._require_tenant(wanted.tenant)
        same = (wanted.uid, wanted.spec_digest, wanted.attempt)
        for run in self.runs.values():
            if (run.uid, run.spec_digest, run.attempt) == same:
                return run
        run_id = f"{len(self.created_runs) + 1:024x}"
        self.created_runs.append(run_id)
        if isinstance(wanted.spec, DomainRunSpec) and wanted.spec.refresh is not None:
            self.refresh_runs[run_id] = datetime.now(UTC)
        fields = wanted.model_dump(exclude={"tenant", "spec"})
        return self._save(RunView(id=run_id, state=RunState.PENDING, spec=wanted.spec, **fields))

    def run(self, run_id: str) -> RunView:
        """Return a run."""
        if run_id not in self.runs:
            raise Refused(404, "UnknownRun", f"There is no run {run_id}.")
        return self.runs[run_id]

    def report_progress(self, run_id: str, progress: RunProgress) -> RunView:
        """Record the progress of a run that is not over."""
        run = self.run(run_id)
        if run.state in FINAL:
            return run
        return self._save(run.model_copy(update={"state": RunState.RUNNING, "progress": progress}))

    def fail_run(self, run_id: str, failure: RunFailure) -> RunView:
        """End a run without a result; a run that has failed keeps its first reason."""
        run = self.run(run_id)
        if run.state is RunState.SUCCEEDED:
            raise Refused(409, "RunFinished", f"Run {run_id} has succeeded and cannot fail any more.")
        return run if run.state is RunState.FAILED else self._fail(run, failure)

    def complete_run(self, run_id: str, result: RunResult) -> RunView:
        """End a run with its result, which becomes a version."""
        run = self.run(run_id)
        if run.state in FINAL:
            return run
        spec = run.spec
        key = f"{spec.namespace}/{spec.name}"
        row = (self.domains if isinstance(spec, DomainRunSpec) else self.adapters).get(key)
        if row is None or row.record.uid != run.uid:
            gone = RunFailure(reason="ResourceDeleted", message="The resource was deleted or replaced.")
            return self._fail(run, gone)
        if isinstance(row, StoredAdapter) and row.withdrawn is not None:
            return self._fail(run, RunFailure(reason=row.withdrawn.reason, message=row.withdrawn.message))
        if isinstance(row, StoredDomain) and isinstance(spec, DomainRunSpec) and spec.refresh is not None:
            return self._complete_refresh(row, run, spec.refresh, result)
        if isinstance(row, StoredDomain):
            version, passed = self._domain_version(row, run, result), True
            row.created[version.version] = datetime.now(UTC)
        else:
            version, passed = self._adapter_version(row, run, result), result.gate_passed
        row.last_version += 1
        if version is not None:
            row.versions.append(version)
        declared = row.record.spec_digest
        is_superseded = row.current is not None and row.current.spec_digest == declared != run.spec_digest
        if passed and not is_superseded:
            row.current = version
            self._on_change()
        progress = run.progress and run.progress.model_copy(update={"step": run.progress.total})
        return self._save(
            run.model_copy(update={"state": RunState.SUCCEEDED, "result": result, "progress": progress})
        )

    def publish_again(self, table: dict[str, Any], key: str, wanted: PublishAgain) -> int | None:
        """Publish the newest version of the declared spec again; None if there is none, or it is damaged."""
        row = table.get(key)
        if row is None or (row.record.uid, row.record.spec_digest) != (wanted.uid, wanted.spec_digest):
            return None
        found = [one for one in row.versions if one.spec_digest == wanted.spec_digest]
        if isinstance(row, StoredAdapter):
            found = [one for one in found if one.gate_passed and self._has_layers(row, one.layers_digest)]
        if not found or any(ref.digest not in self.artifacts.files for ref in _refs_of(found[-1])):
            return None
        if found[-1] != row.current:
            row.last_version += 1
            row.current = found[-1].model_copy(update={"version": row.last_version})
            if isinstance(row, StoredDomain):
                row.created[row.last_version] = datetime.now(UTC)
            row.versions.append(row.current)
            self._on_change()
        return int(row.current.version)

    def refreshes(self, key: str) -> Refreshes:
        """Return the kept tables of a Domain and its last refresh run."""
        row = _found(self.domains, key, "Domain")
        tables = [
            TableVersion(
                version=one.version,
                table=one.tables[0].digest if one.tables else "",
                entries=one.entries,
                created_at=row.created[one.version],
                change=row.changes.get(one.version),
            )
            for one in row.tables
        ]
        runs = [self.runs[run_id] for run_id in self.refresh_runs if run_id in self.runs]
        own = [run for run in runs if run.uid == row.record.uid]
        return Refreshes(tables=tables, last_run=self._refresh_run(own[-1]) if own else None)

    def restore_table(self, key: str, wanted: RestoreTable) -> int | None:
        """Publish the table of a kept version again."""
        row = _found(self.domains, key, "Domain")
        old = next((one for one in row.tables if one.version == wanted.version), None)
        if old is None or row.record.uid != wanted.uid:
            return None
        if any(ref.digest not in self.artifacts.files for ref in _refs_of(old)):
            return None
        if old.tables != row.current.tables:
            copy = old.model_copy(update={"version": row.last_version + 1})
            self._publish_table(row, copy, TableChange(restored=old.version))
        return int(row.current.version)

    def _refresh_run(self, run: RunView) -> RefreshRun:
        assert isinstance(run.spec, DomainRunSpec)
        assert run.spec.refresh is not None
        return RefreshRun(
            run_id=run.id,
            version=run.spec.refresh.current.version,
            attempt=run.attempt,
            state=run.state.value,
            request=run.spec.refresh.request,
            created_at=self.refresh_runs[run.id],
        )

    def _complete_refresh(
        self, row: StoredDomain, run: RunView, refresh: RefreshSpec, result: RunResult
    ) -> RunView:
        current, spec = row.current, run.spec
        assert isinstance(spec, DomainRunSpec)
        if current is None or current.version != refresh.current.version:
            return self._fail(run, RunFailure(reason="Superseded", message="Another version was published."))
        table = next(_of_kind(result, ArtifactKind.TABLE), None)
        if table is not None:
            if result.layers_digest != current.layers.digest or result.refresh is None:
                raise Refused(400, "IncompleteResult", "A refresh names its layers and what it changed.")
            inherited = spec.parent.tables if spec.parent else current.tables[1:]
            version = current.model_copy(
                update={
                    "version": row.last_version + 1,
                    "tables": [table, *inherited],
                    "entries": result.entries or 0,
                    "coverage": result.coverage or 0.0,
                }
            )
            change = TableChange(
                cause=refresh.cause, hit_rate_before=refresh.hit_rate, **result.refresh.model_dump()
            )
            self._publish_table(row, version, change)
            limit = spec.spec.plot.refresh.history_limit if spec.spec.plot.refresh else 5
            for old in row.tables[limit:]:
                row.versions.remove(old)
        return self._save(run.model_copy(update={"state": RunState.SUCCEEDED, "result": result}))

    def _publish_table(self, row: StoredDomain, version: DomainVersionView, change: TableChange) -> None:
        row.last_version = version.version
        row.changes[version.version], row.created[version.version] = change, datetime.now(UTC)
        row.versions.append(version)
        row.current = version
        self._on_change()

    def require_open(self, run_id: str) -> None:
        """Refuse if a run is over and may not publish."""
        if self.run(run_id).state in FINAL:
            raise Refused(409, "RunFinished", f"Run {run_id} is over and publishes nothing more.")

    def artifacts_of(self, run_id: str) -> set[str]:
        """Return the digests of the artifacts that a run uses: those of its Domain or its parent."""
        spec = self.run(run_id).spec
        if isinstance(spec, DomainRunSpec):
            used = [spec.parent, spec.refresh.current if spec.refresh else None]
        else:
            used = [spec.domain]
        return {ref.digest for version in used if version is not None for ref in _refs_of(version)}

    def record_pods(self, run_id: str, pods: list[RunPod]) -> None:
        """Record the pods of a run's Job."""
        self.pods[self.run(run_id).id] = pods

    # --- calls that tests make in a trainer's place ---------------------------------------------------

    def finish_refresh(self, run_id: str, **changes: Any) -> RunView:
        """Complete a refresh run with a table of its own."""
        spec = self.run(run_id).spec
        assert isinstance(spec, DomainRunSpec)
        assert spec.refresh is not None
        result = RunResult(
            artifacts=[self.artifacts.store(ArtifactKind.TABLE, f"table of {run_id}".encode())],
            base_digest="sha256:b",
            layers_digest=spec.refresh.current.layers.digest,
            entries=6,
            coverage=0.7,
            refresh=RefreshResult(windows_in=3, windows_out=2),
        )
        return self.complete_run(run_id, result.model_copy(update=changes))

    def finish_run(self, run_id: str, **changes: Any) -> RunView:
        """Complete a run with artifacts of its own and a metric that passes every gate."""
        is_domain = self.run(run_id).spec.kind == "domain"
        kinds = [ArtifactKind.LAYERS, ArtifactKind.TABLE] if is_domain else [ArtifactKind.ADAPTER]
        result = RunResult(
            artifacts=[self.artifacts.store(kind, f"{kind} of {run_id}".encode()) for kind in kinds],
            base_digest="sha256:b",
            split=3,
            entries=5,
            coverage=0.5,
            labels=["a", "b"],
            metrics={"accuracy": 0.9},
        )
        return self.complete_run(run_id, result.model_copy(update=changes))

    # --- helpers --------------------------------------------------------------------------------------

    def _require_tenant(self, tenant: str) -> None:
        if tenant not in self.tenants:
            raise Refused(404, "UnknownTenant", f"There is no tenant {tenant}; create it first.")

    def _require_free_name(self, key: str, tenant: str) -> None:
        name = key.partition("/")[2]
        for other, row in self.adapters.items():
            if (row.record.tenant, other.partition("/")[2]) == (tenant, name):
                raise Refused(409, "NameTaken", f"{tenant}/{name} is declared as {other}.")

    def _runs_of(self, uid: str) -> list[RunView]:
        return [run for run in self.runs.values() if run.uid == uid]

    def _give_runs(self, old_uid: str, new_uid: str) -> None:
        for run in self._runs_of(old_uid):
            self._save(run.model_copy(update={"uid": new_uid}))

    def _save(self, run: RunView) -> RunView:
        self.runs[run.id] = run
        return run

    def _fail(self, run: RunView, failure: RunFailure) -> RunView:
        return self._save(run.model_copy(update={"state": RunState.FAILED, "failure": failure}))

    def _domain_version(self, row: StoredDomain, run: RunView, result: RunResult) -> DomainVersionView:
        spec = run.spec
        assert isinstance(spec, DomainRunSpec)
        own = next(_of_kind(result, ArtifactKind.LAYERS), None)
        layers = own or (spec.parent.layers if spec.parent else None)
        split = result.split or spec.spec.split or (spec.parent.split if spec.parent else None)
        if layers is None or split is None:
            raise Refused(400, "IncompleteResult", "A domain run without a parent publishes layers.")
        return DomainVersionView(
            version=row.last_version + 1,
            spec_digest=run.spec_digest,
            base=spec.spec.base_model,
            base_digest=result.base_digest,
            split=split,
            layers=layers,
            tables=[*_of_kind(result, ArtifactKind.TABLE), *(spec.parent.tables if spec.parent else [])],
            on_miss=spec.spec.plot.on_miss,
            entries=result.entries or 0,
            coverage=result.coverage or 0.0,
            metrics=result.metrics,
            data=result.data,
        )

    def _adapter_version(
        self, row: StoredAdapter, run: RunView, result: RunResult
    ) -> AdapterVersionView | None:
        """Return the version of a result; None for a result without an adapter."""
        assert not isinstance(run.spec, DomainRunSpec)
        artifact = next(_of_kind(result, ArtifactKind.ADAPTER), None)
        layers_digest = result.layers_digest or run.spec.domain.layers.digest
        if result.gate_passed and artifact is None:
            raise Refused(400, "IncompleteResult", "An adapter run publishes an adapter.")
        if result.gate_passed and not self._has_layers(row, layers_digest):
            raise Refused(400, "UnknownLayers", f"Domain {row.record.domain} has no such layers.")
        if artifact is None:
            return None
        return AdapterVersionView(
            version=row.last_version + 1,
            spec_digest=run.spec_digest,
            artifact=artifact,
            layers_digest=layers_digest,
            labels=result.labels,
            metrics=result.metrics,
            data=result.data,
            gate_passed=result.gate_passed,
        )

    def _has_layers(self, row: StoredAdapter, layers_digest: str) -> bool:
        domain = self.domains.get(row.record.domain)
        return domain is not None and any(one.layers.digest == layers_digest for one in domain.versions)


def _found(table: dict[str, Any], key: str, kind: str) -> Any:
    if key not in table:
        raise Refused(404, f"Unknown{kind}", f"There is no {kind} {key}.")
    return table[key]


def _is_same_resource(old: Any, new: Any) -> bool:
    """Return whether an object of another uid takes over the records of an earlier one."""
    names = ("tenant", "domain", "task_type") if isinstance(new, AdapterRecord) else ("tenant", "base_uri")
    return all(getattr(old, name) == getattr(new, name) for name in names)


def _of_kind(result: RunResult, kind: ArtifactKind) -> Iterator[ArtifactRef]:
    return (ref for ref in result.artifacts if ref.kind is kind)


def _refs_of(version: DomainVersionView | AdapterVersionView) -> Sequence[ArtifactRef]:
    if isinstance(version, AdapterVersionView):
        return [version.artifact]
    return [version.layers, *version.tables]
