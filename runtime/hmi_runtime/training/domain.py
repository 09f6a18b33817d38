"""A Domain's training run: corpus, distillation, table, and what it publishes.

Each stage leaves its result in the work folder and a record that it is finished, so that a run that was
killed goes on where it was.
"""

import time
from collections.abc import Iterable
from pathlib import Path

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.domain import OnMiss
from hmi_api.errors import InvalidInput
from hmi_api.wire import DomainRunSpec, DomainVersionView, RunResult
from hmi_runtime.base import BaseModel, Encoder, load_base
from hmi_runtime.model import DomainLayers, trigrams
from hmi_runtime.model.domain_layers import check_split
from hmi_runtime.plot.build import build_table
from hmi_runtime.plot.lookup import TreeLookup
from hmi_runtime.plot.table import PlotTable
from hmi_runtime.training.checkpoint import Stages
from hmi_runtime.training.corpus import read_texts
from hmi_runtime.training.distill import Distillation, Progress, distill, evaluate_distillation
from hmi_runtime.training.spool import TokenSpool
from hmi_runtime.training.workplace import Workplace

_TABLE_BATCH = 256


def train_domain(
    base: BaseModel,
    texts: Iterable[str],
    work_dir: Path,
    *,
    split: int | None = None,
    bridge_heads: int = 4,
    bridge_head_size: int = 24,
    max_length: int = 128,
    distillation: Distillation | None = None,
    start: DomainLayers | None = None,
    progress: Progress = lambda step, steps, metrics: None,
) -> tuple[DomainLayers, TokenSpool]:
    """Train the layers of a Domain on ``texts``; return them and the tokenised corpus.

    ``split`` is half of the base's layers when absent. ``start``: layers to start from, such as the
    parent's; the base's own otherwise. ``work_dir`` holds the tokenised corpus and the checkpoint, from
    which a second call with the same arguments goes on.
    """
    config = distillation or Distillation()
    encoder = base.encoder()
    spool = _spool(base, texts, work_dir, max_length)
    layers = start or DomainLayers.from_encoder(
        encoder,
        base.config.layers // 2 if split is None else split,
        bridge_heads=bridge_heads,
        bridge_head_size=bridge_head_size,
        seed=config.seed,
    )
    distill(
        encoder,
        layers,
        spool,
        config,
        checkpoint_path=work_dir / "distillation.safetensors",
        progress=progress,
    )
    return layers.requires_grad_(False).eval(), spool


def run_domain(run: DomainRunSpec, stages: Stages, workplace: Workplace) -> RunResult:
    """Do a Domain's training run and return what it published.

    Raises ``InvalidInput`` for what the user declared wrongly: BaseModel*, SplitTooDeep, Corpus*,
    FieldMissing, RowMalformed, ParentMismatch.
    """
    spec = run.spec
    base = load_base(spec.base_model.uri, spec.base_model.revision)
    split = base.config.layers // 2 if spec.split is None else spec.split
    check_split(base.config, split)
    if run.parent is not None:
        _check_parent(run, run.parent, base, split)
    spool = _corpus_stage(run, base, stages, workplace)
    encoder = base.encoder()
    layers_ref, metrics, seconds = _training_stage(run, base, encoder, split, spool, stages, workplace)
    layers = DomainLayers.load(workplace.store.fetch(layers_ref, workplace.cache), encoder)
    table_ref, entries, coverage = _table_stage(run, base, layers, layers_ref, spool, stages, workplace)
    return RunResult(
        artifacts=[layers_ref, table_ref],
        base_digest=base.digest,
        layers_digest=layers_ref.digest,
        split=split,
        metrics=metrics,
        entries=entries,
        coverage=coverage,
        training_seconds=seconds,
    )


def _check_parent(run: DomainRunSpec, parent: DomainVersionView, base: BaseModel, split: int) -> None:
    if parent.base_digest != base.digest:
        raise InvalidInput(
            "ParentMismatch", f"The parent stands on another base model ({parent.base.uri}); use that one."
        )
    if parent.split != split:
        raise InvalidInput(
            "ParentMismatch", f"The parent splits at {parent.split}, not {split}; set split: {parent.split}."
        )


def _corpus_stage(run: DomainRunSpec, base: BaseModel, stages: Stages, workplace: Workplace) -> TokenSpool:
    folder = stages.folder / "corpus"
    if stages.record("corpus") is None:
        workplace.say("corpus")(0, 1, {})
        texts = read_texts(run.spec.corpus)
        spool = _write_spool(base, texts, folder, run.spec.training.max_length)
        stages.finish("corpus", {"rows": len(spool), "tokens": len(spool.tokens)})
    return TokenSpool.open(folder)


def _training_stage(
    run: DomainRunSpec,
    base: BaseModel,
    encoder: Encoder,
    split: int,
    spool: TokenSpool,
    stages: Stages,
    workplace: Workplace,
) -> tuple[ArtifactRef, dict[str, float], float]:
    """Return the Layers artifact, its metrics and the seconds that training took."""
    record = stages.record("training")
    if record is None:
        started = time.monotonic()
        layers = _starting_layers(run, encoder, split, workplace)
        if run.parent is not None and run.spec.training.steps == 0:
            ref = run.parent.layers
        else:
            checkpoint = stages.folder / "distillation.safetensors"
            distill(
                encoder,
                layers,
                spool,
                _distillation(run),
                checkpoint_path=checkpoint,
                checkpoint_seconds=workplace.checkpoint_seconds,
                progress=workplace.say("training"),
            )
            folder = stages.fresh_folder("layers")
            layers.save(folder)
            ref = workplace.store.publish(ArtifactKind.LAYERS, folder, base_digest=base.digest)
        metrics = evaluate_distillation(encoder, layers, spool)
        record = {
            "layers": ref.model_dump(mode="json"),
            "metrics": metrics,
            "seconds": time.monotonic() - started,
        }
        stages.finish("training", record)
    return ArtifactRef.model_validate(record["layers"]), record["metrics"], record["seconds"]


def _starting_layers(run: DomainRunSpec, encoder: Encoder, split: int, workplace: Workplace) -> DomainLayers:
    """Return the parent's layers where there is a parent, else the base's own, run on windows."""
    bridge = run.spec.bridge
    if run.parent is None:
        return DomainLayers.from_encoder(
            encoder,
            split,
            bridge_heads=bridge.heads,
            bridge_head_size=bridge.head_size,
            seed=run.spec.training.seed,
        )
    layers = DomainLayers.load(workplace.store.fetch(run.parent.layers, workplace.cache), encoder)
    made = layers.config
    if made.bridge_heads != bridge.heads or (bridge.heads and made.bridge_head_size != bridge.head_size):
        raise InvalidInput(
            "ParentMismatch",
            f"The parent's bridge has {made.bridge_heads} heads of {made.bridge_head_size}; "
            "set bridge to the same.",
        )
    return layers


def _distillation(run: DomainRunSpec) -> Distillation:
    training = run.spec.training
    return Distillation(
        steps=training.steps,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        seed=training.seed,
        back_off=run.spec.plot.on_miss is OnMiss.BACKOFF,
    )


def _table_stage(
    run: DomainRunSpec,
    base: BaseModel,
    layers: DomainLayers,
    layers_ref: ArtifactRef,
    spool: TokenSpool,
    stages: Stages,
    workplace: Workplace,
) -> tuple[ArtifactRef, int, float]:
    """Return the Table artifact, its entries and the share of held-out windows that the tree holds."""
    record = stages.record("table")
    if record is None:
        plot = run.spec.plot
        pad_id = base.config.pad_id
        ancestors = [
            PlotTable.load(workplace.store.fetch(ref, workplace.cache))
            for ref in (run.parent.tables if run.parent is not None else [])
        ]
        folder = stages.fresh_folder("table")
        say = workplace.say("table")
        report = build_table(
            folder,
            spool.batches(spool.training_rows, _TABLE_BATCH, pad_id),
            layers,
            layers_digest=layers_ref.digest,
            max_entries=plot.max_entries,
            min_frequency=plot.min_frequency,
            dtype=plot.dtype,
            on_miss=plot.on_miss,
            ancestors=ancestors,
            progress=lambda done, total: say(done, total, {}),
        )
        lookup = TreeLookup(
            [PlotTable.load(folder), *ancestors],
            layers,
            layers_digest=layers_ref.digest,
            on_miss=plot.on_miss,
        )
        held_out = spool.batches(spool.held_out_rows, _TABLE_BATCH, pad_id)
        coverage = lookup.coverage(trigrams(ids, mask)[mask] for ids, mask in held_out)
        ref = workplace.store.publish(
            ArtifactKind.TABLE,
            folder,
            base_digest=base.digest,
            layers_digest=layers_ref.digest,
            config={"entries": report.entries, "onMiss": plot.on_miss.value, "dtype": plot.dtype.value},
        )
        record = {"table": ref.model_dump(mode="json"), "entries": report.entries, "coverage": coverage}
        stages.finish("table", record)
    return ArtifactRef.model_validate(record["table"]), record["entries"], record["coverage"]


def _spool(base: BaseModel, texts: Iterable[str], work_dir: Path, max_length: int) -> TokenSpool:
    """Open the finished corpus of a work folder, or write it."""
    stages = Stages(work_dir, "train_domain")
    if stages.record("corpus") is None:
        _write_spool(base, texts, work_dir / "corpus", max_length)
        stages.finish("corpus", {})
    return TokenSpool.open(work_dir / "corpus")


def _write_spool(base: BaseModel, texts: Iterable[str], folder: Path, max_length: int) -> TokenSpool:
    return TokenSpool.write(folder, texts, base.tokenizer, min(max_length, base.config.positions))
