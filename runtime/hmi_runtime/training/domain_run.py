"""A Domain's training run: read the corpus, distil the layers, build the table, publish both.

Each stage leaves its result and a record in the work folder, so that a killed run resumes after its last
finished stage.
"""

from dataclasses import dataclass
from typing import Any

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.errors import InvalidInput
from hmi_api.internal.catalog import DomainVersionView
from hmi_api.internal.runs import DomainRunSpec, RunResult
from hmi_api.resources.common import DataRead
from hmi_api.resources.domain import OnMiss
from hmi_runtime.adapters.native.windows import pack_windows
from hmi_runtime.models.domain_layers import DomainLayers, check_split
from hmi_runtime.models.encoder import Encoder
from hmi_runtime.models.source import BaseModel, load_base
from hmi_runtime.models.windows import trigrams
from hmi_runtime.tables.build import build_table
from hmi_runtime.tables.lookup import TreeLookup
from hmi_runtime.tables.table import PlotTable
from hmi_runtime.training.checkpoint import Stages
from hmi_runtime.training.data_reader import read_texts
from hmi_runtime.training.distillation import distill, evaluate_distillation
from hmi_runtime.training.file_selection import DataUse, SourceStats
from hmi_runtime.training.precision import PRECISION_METRIC, StepPrecision
from hmi_runtime.training.run_context import RunContext
from hmi_runtime.training.token_dataset import TokenDataset

CHECKPOINT_FILE = "distillation.safetensors"

_TABLE_BATCH = 256


def run_domain(run: DomainRunSpec, stages: Stages, context: RunContext) -> RunResult:
    """Execute a Domain's training run and return its result.

    Raises ``InvalidInput`` for errors of the user: BaseModel*, SplitTooDeep, Corpus*,
    FieldMissing, RowMalformed, ParentMismatch.
    """
    spec = run.spec
    base = load_base(spec.base_model.uri, spec.base_model.revision)
    split = base.config.layers // 2 if spec.split is None else spec.split
    check_split(base.config, split)
    if run.parent is not None:
        _check_parent(run.parent, base, split)
    return _DomainRun(run, base, base.encoder(), split, stages, context).result()


def _check_parent(parent: DomainVersionView, base: BaseModel, split: int) -> None:
    if parent.base_digest != base.digest:
        raise InvalidInput(
            "ParentMismatch", f"The parent has another base model ({parent.base.uri}); use that one."
        )
    if parent.split != split:
        raise InvalidInput(
            "ParentMismatch", f"The parent splits at {parent.split}, not {split}; set split: {parent.split}."
        )


@dataclass(frozen=True)
class _DomainRun:
    """The stages of one run. A stage whose record exists is skipped."""

    run: DomainRunSpec
    base: BaseModel
    encoder: Encoder
    split: int
    stages: Stages
    context: RunContext

    def result(self) -> RunResult:
        """Execute the unfinished stages and return the result."""
        dataset = self._corpus()
        trained = self._training(dataset)
        ref = ArtifactRef.model_validate(trained["layers"])
        layers = DomainLayers.load(self.context.store.fetch(ref, self.context.cache), self.encoder)
        pack_windows(layers)
        table = self._table(layers, ref, dataset)
        return RunResult(
            artifacts=[ref, ArtifactRef.model_validate(table["table"])],
            base_digest=self.base.digest,
            layers_digest=ref.digest,
            split=self.split,
            metrics=trained["metrics"],
            entries=table["entries"],
            coverage=table["coverage"],
            data=list(self.context.data),
        )

    def _corpus(self) -> TokenDataset:
        folder = self.stages.folder / "corpus"
        record = self.stages.record("corpus")
        if record is None:
            self.context.announce("corpus")
            stats: list[SourceStats] = []
            texts = read_texts(self.run.spec.corpus, DataUse.CORPUS, stats)
            max_length = min(self.run.spec.training.max_length, self.base.config.positions)
            dataset = TokenDataset.write(folder, texts, self.base.tokenizer, max_length)
            read = [source.report().model_dump() for source in stats]
            record = {"rows": len(dataset), "tokens": len(dataset.tokens), "read": read}
            self.stages.finish("corpus", record)
        self.context.record_data_read(DataRead.model_validate(report) for report in record["read"])
        return TokenDataset.open(folder)

    def _training(self, dataset: TokenDataset) -> dict[str, Any]:
        """Return the record of the Layers artifact and its metrics."""
        record = self.stages.record("training")
        if record is None:
            layers = self._starting_layers()
            metrics: dict[str, float] = {}
            if self.run.parent is not None and self.run.spec.training.steps == 0:
                ref = self.run.parent.layers
            else:
                metrics[PRECISION_METRIC] = self._distilled(layers, dataset).bits
                ref = self._published(layers)
            metrics |= evaluate_distillation(self.encoder, layers, dataset)
            record = {"layers": ref.model_dump(mode="json"), "metrics": metrics}
            self.stages.finish("training", record)
        return record

    def _starting_layers(self) -> DomainLayers:
        """Return the parent's layers; without a parent, the base's own, run on windows."""
        bridge, parent = self.run.spec.bridge, self.run.parent
        if parent is None:
            return DomainLayers.from_encoder(
                self.encoder,
                self.split,
                bridge_heads=bridge.heads,
                bridge_head_size=bridge.head_size,
                seed=self.run.spec.training.seed,
            )
        layers = DomainLayers.load(self.context.store.fetch(parent.layers, self.context.cache), self.encoder)
        made = layers.config
        if made.bridge_heads != bridge.heads or (bridge.heads and made.bridge_head_size != bridge.head_size):
            raise InvalidInput(
                "ParentMismatch",
                f"The parent's bridge has {made.bridge_heads} heads of {made.bridge_head_size}; "
                "set bridge to the same.",
            )
        return layers

    def _distilled(self, layers: DomainLayers, dataset: TokenDataset) -> StepPrecision:
        return distill(
            self.encoder,
            layers,
            dataset,
            self.run.spec.training,
            back_off=self.run.spec.plot.on_miss is OnMiss.BACKOFF,
            checkpoint_path=self.stages.folder / CHECKPOINT_FILE,
            checkpoint_seconds=self.context.checkpoint_seconds,
            precision=self.context.precision,
            fresh=self.run.parent is None,
            progress=self.context.progress_callback("training"),
        )

    def _published(self, layers: DomainLayers) -> ArtifactRef:
        folder = self.stages.fresh_folder("layers")
        layers.save(folder)
        return self.context.store.publish(ArtifactKind.LAYERS, folder, base_digest=self.base.digest)

    def _table(self, layers: DomainLayers, layers_ref: ArtifactRef, dataset: TokenDataset) -> dict[str, Any]:
        """Return the record of the Table artifact, its entries and the coverage of held-out windows."""
        record = self.stages.record("table")
        if record is None:
            plot, pad_id = self.run.spec.plot, self.base.config.pad_id
            report_progress = self.context.progress_callback("table")
            folder = self.stages.fresh_folder("table")
            refs = self.run.parent.tables if self.run.parent is not None else []
            ancestors = [PlotTable.load(self.context.store.fetch(ref, self.context.cache)) for ref in refs]
            report = build_table(
                folder,
                dataset.batches(dataset.training_rows, _TABLE_BATCH, pad_id),
                layers,
                layers_digest=layers_ref.digest,
                max_entries=plot.max_entries,
                min_frequency=plot.min_frequency,
                dtype=plot.dtype,
                on_miss=plot.on_miss,
                ancestors=ancestors,
                progress=lambda done, total: report_progress(done, total, {}),
            )
            tables = [PlotTable.load(folder), *ancestors]
            lookup = TreeLookup(tables, layers, layers_digest=layers_ref.digest, on_miss=plot.on_miss)
            held_out = dataset.batches(dataset.held_out_rows, _TABLE_BATCH, pad_id)
            coverage = lookup.coverage(trigrams(ids, mask)[mask] for ids, mask in held_out)
            ref = self.context.store.publish(
                ArtifactKind.TABLE,
                folder,
                base_digest=self.base.digest,
                layers_digest=layers_ref.digest,
                config={"entries": report.entries, "onMiss": plot.on_miss.value, "dtype": plot.dtype.value},
            )
            record = {"table": ref.model_dump(mode="json"), "entries": report.entries, "coverage": coverage}
            self.stages.finish("table", record)
        return record
