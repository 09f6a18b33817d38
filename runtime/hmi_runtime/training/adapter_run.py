"""A task adapter's training run: read rows, train or import, evaluate against the gate, publish."""

from collections.abc import Iterable
from dataclasses import replace

from hmi_api.artifacts import ArtifactKind
from hmi_api.errors import InvalidInput
from hmi_api.internal.runs import AdapterRunSpec, RunResult
from hmi_api.resources.task_adapter import TaskData, check_gate_fits
from hmi_runtime.adapters.checks import check_adapter
from hmi_runtime.adapters.peft.importer import import_peft
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.training.adapter_training import evaluate, train_adapter
from hmi_runtime.training.backbone import Backbone
from hmi_runtime.training.checkpoint import Stages
from hmi_runtime.training.data_reader import read_texts
from hmi_runtime.training.file_selection import DataUse, SourceStats
from hmi_runtime.training.labelled_data import (
    Rows,
    TaggedRows,
    TrainValidationSplit,
    check_labels_known,
    label_names,
    read_labelled,
    train_validation_split,
)
from hmi_runtime.training.metrics import GateResult, check_gate
from hmi_runtime.training.peft import BASE_URI, FAMILY, download_peft_folder
from hmi_runtime.training.run_context import RunContext
from hmi_runtime.training.teacher import sample_texts


def run_adapter(run: AdapterRunSpec, stages: Stages, context: RunContext) -> RunResult:
    """Execute a task adapter's training run and return its result.

    If the gate is missed, the artifact is stored all the same, and ``gate_passed`` is False. Raises
    ``InvalidInput`` for errors of the user: Corpus*, FieldMissing, RowMalformed,
    TagsMismatch, TagMalformed, OneLabelOnly, Label*, TooFewRows, TooManyLabels, Gate*, TaskUnsupported, and
    for imports Adapter*.
    """
    spec = run.spec
    check_gate_fits(spec.gate, spec.task.type, has_data=spec.data is not None)
    context.limits.check_spec(spec)
    backbone = Backbone.from_version(run.domain, context.store, context.cache)
    if spec.data is not None:
        weights, metrics, gate_result = _trained(run, spec.data, backbone, stages, context)
    else:
        weights, metrics, gate_result = _imported(run, backbone, context), {}, GateResult(True)
    check_adapter(
        weights,
        backbone.base.config,
        backbone.split,
        base_digest=backbone.base.digest,
        layers_digest=backbone.layers_digest,
    )
    context.limits.check("rank", weights.rank, "The adapter has")
    context.limits.check("bottleneck", weights.bottleneck_width, "The adapter has")
    context.limits.check("labels", len(weights.labels), "The adapter has")
    context.announce("publishing", metrics)
    folder = stages.fresh_folder("adapter")
    weights.save(folder)
    ref = context.store.publish(
        ArtifactKind.ADAPTER,
        folder,
        base_digest=weights.base_digest,
        layers_digest=backbone.layers_digest,
        config={
            **weights.config(),
            FAMILY: backbone.base.config.family,
            BASE_URI: backbone.base.uri,
        },
    )
    return RunResult(
        artifacts=[ref],
        base_digest=backbone.base.digest,
        layers_digest=backbone.layers_digest,
        split=backbone.split,
        labels=list(weights.labels),
        metrics=metrics,
        gate_passed=gate_result.passed,
        gate_message=gate_result.message,
        data=list(context.data),
    )


def _trained(
    run: AdapterRunSpec, data: TaskData, backbone: Backbone, stages: Stages, context: RunContext
) -> tuple[AdapterWeights, dict[str, float], GateResult]:
    """Train an adapter and check it against the gate on held-out rows."""
    context.announce("corpus")
    split, evaluation, labels = _rows(run, data, context)
    context.limits.check("labels", len(labels), "The training rows have")
    folder, record = stages.folder / "fitted", stages.record("training")
    if record is None:
        fitted = train_adapter(
            backbone,
            split.train,
            split.validation,
            stages.folder,
            labels=labels,
            method=run.spec.method,
            limits=context.limits,
            training=run.spec.training,
            metric=run.spec.gate.metric if run.spec.gate is not None else None,
            unlabelled=_unlabelled(run, data, (split.train, split.validation, evaluation), context),
            checkpoint_seconds=context.checkpoint_seconds,
            precision=context.precision,
            progress_of=context.progress_callback,
        )
        fitted.weights.save(stages.fresh_folder(folder.name))
        record = dict(fitted.metrics)
        stages.finish("training", record)
        del fitted  # it contains the fine-tuned model too
    weights = AdapterWeights.load(folder)
    context.announce("evaluation", record)
    measured = evaluate(
        backbone,
        weights,
        evaluation,
        stages.folder / "features",
        max_length=run.spec.training.max_length,
    )
    return weights, {**record, **measured}, check_gate(run.spec.gate, measured, len(evaluation))


def _rows(
    run: AdapterRunSpec, data: TaskData, context: RunContext
) -> tuple[TrainValidationSplit, Rows, tuple[str, ...]]:
    """Read the rows; return training and validation rows, rows for the gate, and the labels.

    A tenth of the training rows is held out to choose epoch and rank. The gate is evaluated on the task's
    evaluation rows, which are used for nothing else, or on that tenth if there are none.
    """
    task = run.spec.task
    stats = SourceStats(DataUse.TRAIN)
    rows = read_labelled(data.train, task.type, stats)
    try:
        labels = label_names(rows, task.labels)
        split = train_validation_split(rows)
        stats.held_out = len(split.validation)
    finally:  # the report shows what was read, also if it is refused
        context.record_data_read([stats.report()])
        context.announce("corpus")
    if data.evaluation is None:
        return split, split.validation, labels
    stats = SourceStats(DataUse.EVALUATION)
    evaluation = read_labelled(data.evaluation, task.type, stats)
    context.record_data_read([stats.report()])
    check_labels_known(evaluation, labels)
    if isinstance(evaluation, TaggedRows) and isinstance(rows, TaggedRows):
        evaluation = replace(evaluation, scheme=rows.scheme)
    return split, evaluation, labels


def _unlabelled(
    run: AdapterRunSpec, data: TaskData, labelled: Iterable[Rows], context: RunContext
) -> list[str]:
    """Return the texts for the teacher to label; none of them is a training, validation or evaluation row."""
    teacher = run.spec.training.teacher
    if teacher is None or data.unlabelled is None:
        return []
    known = {text for rows in labelled for text in rows.inputs()}
    all_stats: list[SourceStats] = []
    texts = read_texts([data.unlabelled], DataUse.UNLABELLED, all_stats)
    drawn = sample_texts(texts, teacher.unlabelled_rows, without=known)
    context.record_data_read(stats.report() for stats in all_stats)
    return drawn


def _imported(run: AdapterRunSpec, backbone: Backbone, context: RunContext) -> AdapterWeights:
    spec = run.spec
    if spec.source is None:
        raise InvalidInput("DataMissing", "Give data to train on, or a source to import.")
    context.announce("corpus")
    return import_peft(
        download_peft_folder(spec.source.uri, context.folder / "source"),
        backbone.base,
        backbone.split,
        spec.task,
        base_also_named=spec.source.base_model_name,
        base_revision=run.domain.base.revision,
    )
