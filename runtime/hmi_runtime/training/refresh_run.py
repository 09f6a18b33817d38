"""A refresh run: build a Domain's next table from traffic and publish it; nothing is trained.

The layers are those of the current version, fetched and verified as every artifact is. What traffic looked up
is read once and kept in the work folder, so that a run that is started again builds the same table.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.errors import Damaged, InvalidInput
from hmi_api.internal.refreshes import RefreshResult, RefreshSpec
from hmi_api.internal.runs import DomainRunSpec, RunResult
from hmi_api.internal.window_counts import MAX_WINDOWS_READ, WindowCounts
from hmi_runtime.adapters.native.windows import pack_windows
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.source import BaseModel, load_base
from hmi_runtime.tables.lookup import TreeLookup
from hmi_runtime.tables.refresh import RefreshReport, Traffic, refresh_table
from hmi_runtime.tables.table import PlotTable
from hmi_runtime.training.checkpoint import Stages
from hmi_runtime.training.run_context import RunContext

TRAFFIC_FILE = "traffic.npz"


def run_refresh(run: DomainRunSpec, refresh: RefreshSpec, stages: Stages, context: RunContext) -> RunResult:
    """Execute a refresh run and return its result; without changes it has no artifact.

    Raises ``InvalidInput`` TrafficUnknown without a control plane, RefreshOutdated when the Domain has other
    layers now, BaseModel*; ``Damaged`` TableInvalid.
    """
    spec, current = run.spec, refresh.current
    base = load_base(spec.base_model.uri, spec.base_model.revision, expected_digest=current.base_digest)
    return _RefreshRun(run, refresh, base, stages, context).result()


@dataclass(frozen=True)
class _RefreshRun:
    """The stages of one run. A stage whose record exists is skipped."""

    run: DomainRunSpec
    refresh: RefreshSpec
    base: BaseModel
    stages: Stages
    context: RunContext

    def result(self) -> RunResult:
        current = self.refresh.current
        record = self.stages.record("table") or self._table(self._traffic())
        changed = record["table"] is not None
        return RunResult(
            artifacts=[ArtifactRef.model_validate(record["table"])] if changed else [],
            base_digest=self.base.digest,
            layers_digest=current.layers.digest,
            split=current.split,
            entries=record["entries"],
            coverage=record["coverage"],
            refresh=RefreshResult(windows_in=record["in"], windows_out=record["out"]),
        )

    def _traffic(self) -> Traffic:
        path = self.stages.folder / TRAFFIC_FILE
        if self.stages.record("traffic") is None:
            self.context.announce("traffic")
            counts = self._window_counts()
            arrays = (counts.keys, counts.counts, counts.belongs_to_child)
            keys, numbers, theirs = (np.frombuffer(one, dtype="<i8") for one in arrays)
            np.savez(path, keys=keys, counts=numbers, belongs_to_child=theirs)
            lookups = counts.statistics.lookups if counts.statistics is not None else 0
            self.stages.finish("traffic", {"lookups": lookups, "windows": len(keys)})
        record = self.stages.record("traffic") or {}
        with np.load(path) as saved:
            # A run that began with an earlier version of the trainer has saved no such array.
            theirs = saved["belongs_to_child"] if "belongs_to_child" in saved else np.empty(0, dtype=np.int64)
            return Traffic(saved["keys"], saved["counts"], int(record["lookups"]), theirs)

    def _window_counts(self) -> WindowCounts:
        if self.context.window_counts is None:
            raise InvalidInput(
                "TrafficUnknown", "A refresh reads what traffic looked up from the control plane; name one."
            )
        most = min(self.run.spec.plot.max_entries, MAX_WINDOWS_READ)
        counts = self.context.window_counts(most)
        if counts.layers_digest != self.refresh.current.layers.digest:
            raise InvalidInput(
                "RefreshOutdated", "The Domain was trained again since this refresh began; nothing was done."
            )
        return counts

    def _table(self, traffic: Traffic) -> dict[str, Any]:
        """Build and publish the table; return its record.

        Its table is None if no window changed and the parent's tables are those that are read already.
        """
        plot, current = self.run.spec.plot, self.refresh.current
        present, layers, ancestors = self._load()
        report_progress = self.context.progress_callback("table")
        folder = self.stages.fresh_folder("table")
        report = refresh_table(
            folder,
            present,
            traffic,
            layers,
            max_entries=plot.max_entries,
            min_frequency=plot.min_frequency,
            dtype=plot.dtype,
            on_miss=current.on_miss,
            ancestors=ancestors,
            progress=lambda done, total: report_progress(done, total, {}),
        )
        self._check(PlotTable.load(folder), report, layers)
        record: dict[str, Any] = {
            "table": None,
            "entries": report.entries,
            "coverage": report.coverage,
            "in": report.windows_in,
            "out": report.windows_out,
        }
        if report.windows_in or report.windows_out or self._inherited() != current.tables[1:]:
            ref = self.context.store.publish(
                ArtifactKind.TABLE,
                folder,
                base_digest=self.base.digest,
                layers_digest=current.layers.digest,
                config={
                    "entries": report.entries,
                    "onMiss": current.on_miss.value,
                    "dtype": plot.dtype.value,
                },
            )
            record["table"] = ref.model_dump(mode="json")
        self.stages.finish("table", record)
        return record

    def _load(self) -> tuple[PlotTable, DomainLayers, list[PlotTable]]:
        """Return the current table, the layers that made it, and the tables of the ancestors."""
        current = self.refresh.current
        store, cache = self.context.store, self.context.cache
        layers = DomainLayers.load(store.fetch(current.layers, cache), self.base.encoder())
        pack_windows(layers)
        if not current.tables:
            raise Damaged("TableInvalid", "The current version has no table; build the Domain's table again.")
        present, *ancestors = (
            PlotTable.load(store.fetch(ref, cache)) for ref in [current.tables[0], *self._inherited()]
        )
        return present, layers, ancestors

    def _inherited(self) -> list[ArtifactRef]:
        """Return the ancestors' tables that the next version reads: the parent's present ones."""
        parent = self.run.parent
        return parent.tables if parent is not None else self.refresh.current.tables[1:]

    def _check(self, table: PlotTable, report: RefreshReport, layers: DomainLayers) -> None:
        """Check, before it is published, that a runtime can use the table and that it fits its budget."""
        TreeLookup(
            [table],
            layers,
            layers_digest=self.refresh.current.layers.digest,
            on_miss=self.refresh.current.on_miss,
            recent_bytes=0,
        )
        if table.entries != report.entries or table.entries > self.run.spec.plot.max_entries:
            raise Damaged("TableInvalid", f"The refreshed table has {table.entries} windows, which is wrong.")
