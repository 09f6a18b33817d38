"""Training runs on a tiny base model, in folders of their own."""

import io
from pathlib import Path
from typing import Any

from hmi_api.internal.catalog import DomainVersionView
from hmi_api.internal.runs import AdapterRunSpec, DomainRunSpec, RunFailure, RunResult, RunSpec
from hmi_runtime.artifacts.store import ArtifactStore
from hmi_runtime.training.report import LineReporter
from hmi_runtime.training.run import execute_run
from hmi_runtime.training.run_context import RunContext


class Runs:
    """Runs trainings, each in its own folder, over one artifact store."""

    def __init__(self, folder: Path, base_folder: Path, corpus: Path) -> None:
        self.folder = folder
        self.base_folder = base_folder
        self.corpus = corpus
        self.store = ArtifactStore(str(folder / "artifacts"))
        self.lines = io.StringIO()

    def domain_spec(self, parent: DomainVersionView | None = None, **more: Any) -> DomainRunSpec:
        spec: dict[str, Any] = {
            "baseModel": {"uri": str(self.base_folder)},
            "corpus": [{"uri": str(self.corpus)}],
            "bridge": {"heads": 2, "headSize": 8},
            "training": {"steps": 6, "batchSize": 8, "maxLength": 16},
            "plot": {"minFrequency": 1},
        }
        run = {"namespace": "bikes", "name": "workshop", "spec": {**spec, **more}}
        return DomainRunSpec.model_validate(run).model_copy(update={"parent": parent})

    def do(self, run: RunSpec, name: str, **context: Any) -> RunResult | RunFailure:
        reporter = LineReporter(self.lines)
        return execute_run(
            run, RunContext(self.folder / name, self.store, reporter, checkpoint_seconds=0.0, **context)
        )

    def version(self, name: str = "domain", **more: Any) -> DomainVersionView:
        """Train a Domain and return it as the catalog would."""
        run = self.domain_spec(**more)
        result = succeeded(self.do(run, name))
        parent = more.get("parent")
        layers, table = result.artifacts
        return DomainVersionView(
            version=1, spec_digest="", base=run.spec.base_model, base_digest=result.base_digest,
            split=result.split or 0, layers=layers, tables=[table, *(parent.tables if parent else [])],
            on_miss=run.spec.plot.on_miss, entries=result.entries or 0, coverage=result.coverage or 0.0,
        )  # fmt: skip

    def adapter_spec(self, domain: DomainVersionView, train: Path, **more: Any) -> AdapterRunSpec:
        spec: dict[str, Any] = {
            "domainRef": {"name": "workshop"},
            "task": {"type": "SequenceClassification"},
            "data": {"train": {"uri": str(train)}},
            "training": {"epochs": 2, "batchSize": 16, "learningRate": 0.01, "maxLength": 16},
        }
        merged = {name: value for name, value in {**spec, **more}.items() if value is not None}
        run = {"namespace": "bikes", "name": "side", "spec": merged}
        return AdapterRunSpec.model_validate({**run, "domain": domain.model_dump(by_alias=True)})


def succeeded(ended: RunResult | RunFailure) -> RunResult:
    assert isinstance(ended, RunResult), ended
    return ended


def failed(ended: RunResult | RunFailure) -> RunFailure:
    assert isinstance(ended, RunFailure), ended
    return ended
