"""A task adapter's training run: rows, fit or import, evaluation behind the gate, publishing."""

from dataclasses import dataclass, replace

from hmi_api.artifacts import ArtifactKind
from hmi_api.errors import InvalidInput
from hmi_api.internal.runs import AdapterRunSpec, RunResult
from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.resources.task_adapter import TaskData, check_gate_fits
from hmi_runtime.adapters.checks import check_adapter
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.training.checkpoint import Stages
from hmi_runtime.training.corpus import read_texts
from hmi_runtime.training.export import BASE_URI, FAMILY
from hmi_runtime.training.fitting import evaluate, fit_adapter
from hmi_runtime.training.foundation import Foundation
from hmi_runtime.training.gate import Verdict, judge
from hmi_runtime.training.hold_out import hold_out
from hmi_runtime.training.imports import import_adapter
from hmi_runtime.training.labelled import Rows, TaggedRows, check_known, label_names, read_labelled
from hmi_runtime.training.source_files import Reading, Use
from hmi_runtime.training.spent import TimeSpent
from hmi_runtime.training.teacher import draw
from hmi_runtime.training.workplace import Workplace


def run_adapter(run: AdapterRunSpec, stages: Stages, workplace: Workplace) -> RunResult:
    """Do a task adapter's training run and return what it published.

    A gate that is not passed is a result too: the artifact is published, and ``gate_passed`` is False.
    Raises ``InvalidInput`` for what the user declared wrongly: Corpus*, FieldMissing, RowMalformed,
    TagsMismatch, TagMalformed, OneLabelOnly, Label*, TooFewRows, TooManyLabels, Gate*, TaskUnsupported, and
    for imports Adapter*.
    """
    with TimeSpent(stages.folder) as spent:
        result = _result(run, stages, workplace)
        return result.model_copy(update={"training_seconds": spent.seconds})


def _result(run: AdapterRunSpec, stages: Stages, workplace: Workplace) -> RunResult:
    spec = run.spec
    check_gate_fits(spec.gate, spec.task.type, has_data=spec.data is not None)
    workplace.limits.check_spec(spec)
    foundation = Foundation.of_version(run.domain, workplace.store, workplace.cache)
    if spec.data is not None:
        weights, metrics, verdict = _trained(run, spec.data, foundation, stages, workplace)
    else:
        weights, metrics, verdict = _imported(run, foundation, workplace), {}, Verdict(True)
    check_adapter(
        weights,
        foundation.base.config,
        foundation.split,
        base_digest=foundation.base.digest,
        layers_digest=foundation.layers_digest,
    )
    _check_limits(weights, workplace.limits)
    workplace.say("publishing")(0, 1, metrics)
    folder = stages.fresh_folder("adapter")
    weights.save(folder)
    ref = workplace.store.publish(
        ArtifactKind.ADAPTER,
        folder,
        base_digest=weights.base_digest,
        layers_digest=foundation.layers_digest,
        config={
            **weights.config(),
            FAMILY: foundation.base.config.family,
            BASE_URI: foundation.base.uri,
        },
    )
    return RunResult(
        artifacts=[ref],
        base_digest=foundation.base.digest,
        layers_digest=foundation.layers_digest,
        split=foundation.split,
        labels=list(weights.labels),
        metrics=metrics,
        gate_passed=verdict.passed,
        gate_message=verdict.message,
        data=list(workplace.data),
    )


def _check_limits(weights: AdapterWeights, limits: AdapterLimits) -> None:
    """Raise ``InvalidInput`` AdapterTooLarge for an adapter that no runtime would load."""
    limits.check_rank(weights.rank, "The adapter has")
    limits.check_bottleneck(weights.bottleneck_width, "The adapter has")
    limits.check_labels(len(weights.labels), "The adapter has")


def _trained(
    run: AdapterRunSpec, data: TaskData, foundation: Foundation, stages: Stages, workplace: Workplace
) -> tuple[AdapterWeights, dict[str, float], Verdict]:
    """Fit an adapter to the rows and judge it on held-out ones."""
    workplace.say("corpus")(0, 1, {})
    parts, labels = _rows(run, data, workplace)
    workplace.limits.check_labels(len(labels), "The training rows have")
    folder, record = stages.folder / "fitted", stages.record("training")
    if record is None:
        fitted = fit_adapter(
            foundation,
            parts.train,
            parts.validation,
            stages.folder,
            labels=labels,
            method=run.spec.method,
            limits=workplace.limits,
            training=run.spec.training,
            metric=run.spec.gate.metric if run.spec.gate is not None else None,
            unlabelled=_unlabelled(run, data, parts, workplace),
            checkpoint_seconds=workplace.checkpoint_seconds,
            progress=workplace.say("training"),
            teaching=workplace.say("teaching"),
            settling=workplace.say("settling"),
        )
        fitted.weights.save(stages.fresh_folder(folder.name))
        record = dict(fitted.metrics)
        stages.finish("training", record)
        del fitted  # it holds the tuned model too
    weights = AdapterWeights.load(folder)
    workplace.say("evaluation")(0, 1, record)
    measured = evaluate(
        foundation,
        weights,
        parts.judged_on,
        stages.folder / "features",
        max_length=run.spec.training.max_length,
    )
    return weights, {**record, **measured}, judge(run.spec.gate, measured, len(parts.judged_on))


@dataclass(frozen=True)
class _Parts:
    """Rows to learn from, to choose epoch and rank on, and to judge by."""

    train: Rows
    validation: Rows
    judged_on: Rows


def _rows(run: AdapterRunSpec, data: TaskData, workplace: Workplace) -> tuple[_Parts, tuple[str, ...]]:
    """Return the rows and the labels, and say what was read.

    The choice is made on a tenth of the training rows. Where the task has evaluation rows of its own,
    nothing but the gate sees them; else that tenth serves for both.
    """
    task = run.spec.task
    reading = Reading(Use.TRAIN)
    rows = read_labelled(data.train, task.type, reading)
    try:
        labels = label_names(rows, task.labels)
        held = hold_out(rows)
        reading.held_out = len(held.validation)
    finally:  # what was read tells best why it does not fit
        workplace.has_read([reading.report()])
        workplace.say("corpus")(0, 1, {})
    if data.evaluation is None:
        return _Parts(held.train, held.validation, held.validation), labels
    reading = Reading(Use.EVALUATION)
    evaluation = read_labelled(data.evaluation, task.type, reading)
    workplace.has_read([reading.report()])
    check_known(evaluation, labels)
    if isinstance(evaluation, TaggedRows) and isinstance(rows, TaggedRows):
        evaluation = replace(evaluation, scheme=rows.scheme)
    return _Parts(held.train, held.validation, evaluation), labels


def _unlabelled(run: AdapterRunSpec, data: TaskData, parts: _Parts, workplace: Workplace) -> list[str]:
    """Return the texts that a teacher labels; none that the task is learnt from or judged by."""
    teacher = run.spec.training.teacher
    if teacher is None or data.unlabelled is None:
        return []
    known = {text for rows in (parts.train, parts.validation, parts.judged_on) for text in rows.inputs()}
    readings: list[Reading] = []
    texts = read_texts([data.unlabelled], Use.UNLABELLED, readings)
    drawn = draw(texts, teacher.unlabelled_rows, without=known)
    workplace.has_read(reading.report() for reading in readings)
    return drawn


def _imported(run: AdapterRunSpec, foundation: Foundation, workplace: Workplace) -> AdapterWeights:
    spec = run.spec
    if spec.source is None:
        raise InvalidInput("DataMissing", "Give data to train on, or a source to import.")
    workplace.say("corpus")(0, 1, {})
    return import_adapter(
        spec.source,
        workplace.folder / "source",
        foundation,
        spec.task,
        base_revision=run.domain.base.revision,
    )
