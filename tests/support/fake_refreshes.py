"""The refreshes of the fake control plane: their runs, the kept tables, and rollbacks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fake_versions import StoredDomain, found, of_kind, refs_of

from hmi_api.artifacts import ArtifactKind
from hmi_api.internal.catalog import DomainVersionView
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
from hmi_api.internal.runs import DomainRunSpec, RunFailure, RunResult, RunState, RunView

if TYPE_CHECKING:
    from fake_catalog import FakeCatalog


class FakeRefreshes:
    """The refresh runs of a fake catalog."""

    def __init__(self, catalog: FakeCatalog) -> None:
        self.runs: dict[str, datetime] = {}
        """When each refresh run was created, the oldest first."""
        self._catalog = catalog

    def view(self, key: str) -> Refreshes:
        """Return the kept tables of a Domain and its last refresh run."""
        row = found(self._catalog.domains, key, "Domain")
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
        runs = [self._catalog.runs[run_id] for run_id in self.runs if run_id in self._catalog.runs]
        own = [run for run in runs if run.uid == row.record.uid]
        return Refreshes(tables=tables, last_run=self._run_view(own[-1]) if own else None)

    def restore(self, key: str, wanted: RestoreTable) -> int | None:
        """Publish the table of a kept version again."""
        row = found(self._catalog.domains, key, "Domain")
        old = next((one for one in row.tables if one.version == wanted.version), None)
        if old is None or row.record.uid != wanted.uid:
            return None
        if any(ref.digest not in self._catalog.artifacts.files for ref in refs_of(old)):
            return None
        if old.tables != row.current.tables:
            copy = old.model_copy(update={"version": row.last_version + 1})
            self._publish(row, copy, TableChange(restored=old.version))
        return int(row.current.version)

    def _run_view(self, run: RunView) -> RefreshRun:
        assert isinstance(run.spec, DomainRunSpec)
        assert run.spec.refresh is not None
        return RefreshRun(
            run_id=run.id,
            version=run.spec.refresh.current.version,
            attempt=run.attempt,
            state=run.state.value,
            request=run.spec.refresh.request,
            created_at=self.runs[run.id],
        )

    def complete(self, row: StoredDomain, run: RunView, refresh: RefreshSpec, result: RunResult) -> RunView:
        """End a refresh run with its result; its table becomes a version."""
        current, spec = row.current, run.spec
        assert isinstance(spec, DomainRunSpec)
        if current is None or current.version != refresh.current.version:
            return self._catalog.fail(
                run, RunFailure(reason="Superseded", message="Another version was published.")
            )
        table = next(of_kind(result, ArtifactKind.TABLE), None)
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
            self._publish(row, version, change)
            limit = spec.spec.plot.refresh.history_limit if spec.spec.plot.refresh else 5
            for old in row.tables[limit:]:
                row.versions.remove(old)
        return self._catalog.save(run.model_copy(update={"state": RunState.SUCCEEDED, "result": result}))

    def _publish(self, row: StoredDomain, version: DomainVersionView, change: TableChange) -> None:
        row.last_version = version.version
        row.changes[version.version], row.created[version.version] = change, datetime.now(UTC)
        row.versions.append(version)
        row.current = version
        self._catalog.on_change()

    def finish(self, run_id: str, **changes: Any) -> RunView:
        """Complete a refresh run with a table of its own."""
        spec = self._catalog.run(run_id).spec
        assert isinstance(spec, DomainRunSpec)
        assert spec.refresh is not None
        result = RunResult(
            artifacts=[self._catalog.artifacts.store(ArtifactKind.TABLE, f"table of {run_id}".encode())],
            base_digest="sha256:b",
            layers_digest=spec.refresh.current.layers.digest,
            entries=6,
            coverage=0.7,
            refresh=RefreshResult(windows_in=3, windows_out=2),
        )
        return self._catalog.complete_run(run_id, result.model_copy(update=changes))
