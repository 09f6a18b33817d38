"""The catalog of the fake control plane: the internal API over dictionaries.

It raises ``Refused`` with the status and the reason of the real one. ``tests/contract`` compares both.
"""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from fake_artifacts import FakeArtifacts
from fake_refreshes import FakeRefreshes
from fake_versions import (
    LoadReport,
    StoredAdapter,
    StoredDomain,
    adapter_version,
    domain_version,
    found,
    has_layers,
    refs_of,
)

from hmi_api.artifacts import ArtifactKind
from hmi_api.internal.catalog import (
    AdapterRecord,
    AdapterView,
    DomainRecord,
    DomainView,
    EarlierVersion,
    PublishAgain,
    RecordKey,
    RecordPage,
    Revocation,
)
from hmi_api.internal.client import Refused
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


class FakeCatalog:
    """Resources, runs, versions and artifacts; ``on_change`` is called when placements may have to change."""

    def __init__(self, on_change: Callable[[], None], reports_of: Callable[[str], list[LoadReport]]) -> None:
        self.tenants: set[str] = set()
        self.domains: dict[str, StoredDomain] = {}
        self.adapters: dict[str, StoredAdapter] = {}
        self.runs: dict[str, RunView] = {}
        self.refreshes = FakeRefreshes(self)
        self.created_runs: list[str] = []
        """Ids of all runs that were ever created: those of deleted resources are in ``runs`` no more."""
        self.pods: dict[str, list[RunPod]] = {}
        self.artifacts = FakeArtifacts()
        self.page_items = 500
        self._declared = 0
        self.on_change = on_change
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
            self.on_change()

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
                self.fail(run, RunFailure(reason="ResourceDeleted", message="The resource was deleted."))
        self.on_change()

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
        row = found(self.domains, key, "Domain")
        return DomainView(record=row.record, current=row.current)

    def adapter_view(self, key: str, running: int = 0) -> AdapterView:
        """Return a TaskAdapter, and where it is; ``running`` counts the runtimes that take placements."""
        row = found(self.adapters, key, "Adapter")
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
        row = found(self.adapters, key, "Adapter")
        row.revoked_at = row.revoked_at or datetime.now(UTC)
        if revocation.withdraw:
            row.withdrawn, row.current, row.versions, row.last_version = revocation, None, [], 0
            self.on_change()

    def restore(self, key: str) -> None:
        """Take back a revocation."""
        row = found(self.adapters, key, "Adapter")
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
            self.refreshes.runs[run_id] = datetime.now(UTC)
        fields = wanted.model_dump(exclude={"tenant", "spec"})
        return self.save(RunView(id=run_id, state=RunState.PENDING, spec=wanted.spec, **fields))

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
        return self.save(run.model_copy(update={"state": RunState.RUNNING, "progress": progress}))

    def fail_run(self, run_id: str, failure: RunFailure) -> RunView:
        """End a run without a result; a run that has failed keeps its first reason."""
        run = self.run(run_id)
        if run.state is RunState.SUCCEEDED:
            raise Refused(409, "RunFinished", f"Run {run_id} has succeeded and cannot fail any more.")
        return run if run.state is RunState.FAILED else self.fail(run, failure)

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
            return self.fail(run, gone)
        if isinstance(row, StoredAdapter) and row.withdrawn is not None:
            return self.fail(run, RunFailure(reason=row.withdrawn.reason, message=row.withdrawn.message))
        if isinstance(row, StoredDomain) and isinstance(spec, DomainRunSpec) and spec.refresh is not None:
            return self.refreshes.complete(row, run, spec.refresh, result)
        if isinstance(row, StoredDomain):
            version, passed = domain_version(row, run, result), True
            row.created[version.version] = datetime.now(UTC)
        else:
            version, passed = (
                adapter_version(row, self.domains.get(row.record.domain), run, result),
                result.gate_passed,
            )
        row.last_version += 1
        if version is not None:
            row.versions.append(version)
        declared = row.record.spec_digest
        is_superseded = row.current is not None and row.current.spec_digest == declared != run.spec_digest
        if passed and not is_superseded:
            row.current = version
            self.on_change()
        progress = run.progress and run.progress.model_copy(update={"step": run.progress.total})
        return self.save(
            run.model_copy(update={"state": RunState.SUCCEEDED, "result": result, "progress": progress})
        )

    def publish_again(self, table: dict[str, Any], key: str, wanted: PublishAgain) -> int | None:
        """Publish the newest version of the declared spec again; None if there is none, or it is damaged."""
        row = table.get(key)
        if row is None or (row.record.uid, row.record.spec_digest) != (wanted.uid, wanted.spec_digest):
            return None
        found = [one for one in row.versions if one.spec_digest == wanted.spec_digest]
        if isinstance(row, StoredAdapter):
            domain = self.domains.get(row.record.domain)
            found = [one for one in found if one.gate_passed and has_layers(domain, one.layers_digest)]
        if not found or any(ref.digest not in self.artifacts.files for ref in refs_of(found[-1])):
            return None
        if found[-1] != row.current:
            row.last_version += 1
            row.current = found[-1].model_copy(update={"version": row.last_version})
            if isinstance(row, StoredDomain):
                row.created[row.last_version] = datetime.now(UTC)
            row.versions.append(row.current)
            self.on_change()
        return int(row.current.version)

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
        return {ref.digest for version in used if version is not None for ref in refs_of(version)}

    def record_pods(self, run_id: str, pods: list[RunPod]) -> None:
        """Record the pods of a run's Job."""
        self.pods[self.run(run_id).id] = pods

    # --- calls that tests make in a trainer's place ---------------------------------------------------

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
            self.save(run.model_copy(update={"uid": new_uid}))

    def save(self, run: RunView) -> RunView:
        """Store a run."""
        self.runs[run.id] = run
        return run

    def fail(self, run: RunView, failure: RunFailure) -> RunView:
        """End a run with a failure."""
        return self.save(run.model_copy(update={"state": RunState.FAILED, "failure": failure}))


def _is_same_resource(old: Any, new: Any) -> bool:
    """Return whether an object of another uid takes over the records of an earlier one."""
    names = ("tenant", "domain", "task_type") if isinstance(new, AdapterRecord) else ("tenant", "base_uri")
    return all(getattr(old, name) == getattr(new, name) for name in names)
