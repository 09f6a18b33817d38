"""Training a task's adapter on a backbone, and evaluating an adapter."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.resources.task_adapter import (
    AdapterPlacement,
    AdapterTraining,
    Fit,
    Method,
    MethodType,
    Metric,
    TaskType,
)
from hmi_runtime.adapters.bottleneck import add_bottlenecks, export_bottlenecks
from hmi_runtime.adapters.compression import (
    CANDIDATE_RANKS,
    ByMatrix,
    CutQuality,
    Decomposition,
    importance,
    smallest_rank,
)
from hmi_runtime.adapters.heads import HeadModule, run_head
from hmi_runtime.adapters.lora import add_lora, export_lora
from hmi_runtime.adapters.reference import run_layers
from hmi_runtime.adapters.weights import AdapterWeights, Head, LayerAdapter
from hmi_runtime.models.encoder import UpperLayers
from hmi_runtime.training.backbone import Backbone, BatchFunction
from hmi_runtime.training.compression import distill_compressed
from hmi_runtime.training.examples import Examples, default_metric, make_examples
from hmi_runtime.training.fine_tuning import (
    Predictions,
    TaskDataset,
    TaskModel,
    TrainingSet,
    fine_tune,
    score,
)
from hmi_runtime.training.labelled_data import Rows, check_labels_known, label_names
from hmi_runtime.training.optim import Progress
from hmi_runtime.training.precision import FLOAT32, PRECISION_METRIC, StepPrecision
from hmi_runtime.training.teacher import label_with_teacher

DIRECT_LORA_RANK = 16
BOTTLENECK_WIDTH = 32

_SAMPLE_TOKENS = 16_384
_SAMPLE_BATCH = 64


@dataclass(frozen=True)
class TrainedAdapter:
    """An adapter, in float32, and its metrics on the validation rows."""

    weights: AdapterWeights
    metrics: Mapping[str, float]
    tuned: BatchFunction | None = None
    """The fine-tuned model, in eval mode, that the adapter was compressed from."""


def no_progress(stage: str) -> Progress:
    """Report nothing."""
    return lambda step, steps, metrics: None


def train_adapter(
    backbone: Backbone,
    train: Rows,
    validation: Rows,
    work_dir: Path,
    *,
    labels: Sequence[str] = (),
    method: Method | None = None,
    limits: AdapterLimits | None = None,
    training: AdapterTraining | None = None,
    metric: Metric | None = None,
    unlabelled: Sequence[str] = (),
    teacher_dir: Path | None = None,
    checkpoint_seconds: float = 30.0,
    precision: StepPrecision = FLOAT32,
    progress_of: Callable[[str], Progress] = no_progress,
) -> TrainedAdapter:
    """Train an adapter and a head on ``train``; epoch and rank are chosen on ``validation``.

    ``labels`` come from the rows if absent; ``metric`` is the task's default; ``limits`` bound the sizes that
    ``method`` leaves open. ``work_dir`` contains the checkpoints and the rows' features. If ``training`` has
    a teacher, it labels ``unlabelled`` too; ``teacher_dir`` (in ``work_dir`` if absent) keeps its soft labels
    for trainings of the same task on any backbone. ``progress_of`` returns the callback of a stage:
    ``teaching`` (of the teacher), ``training``, and ``settling`` (the distillation after compression). Raises
    ``InvalidInput`` OneLabelOnly, LabelUnknown.
    """
    method, training = method or Method(), training or AdapterTraining()
    limits = limits or AdapterLimits()
    names = label_names(train, labels)
    check_labels_known(validation, names)
    features_dir = work_dir / "features"
    examples = _examples(backbone, train, names, training.max_length)
    chosen_on = task_dataset(backbone, validation, names, training.max_length, features_dir)
    metric = metric or default_metric(examples.task)
    precision = precision.for_task(TaskType(examples.task))
    train_set: TrainingSet
    if training.teacher is not None:
        train_set = label_with_teacher(
            backbone,
            examples,
            chosen_on.examples,
            unlabelled,
            training,
            training.teacher,
            metric,
            teacher_dir=(teacher_dir or work_dir) / f"teacher-{examples.digest()}",
            features_dir=features_dir,
            checkpoint_seconds=checkpoint_seconds,
            precision=precision,
            progress=progress_of("teaching"),
        )
    else:
        train_set = _with_features(backbone, examples, features_dir)
    folder = work_dir / f"tuning-{examples.digest()}"
    folder.mkdir(parents=True, exist_ok=True)
    model = _model(backbone, examples, method, limits, training.seed)
    best = fine_tune(
        model,
        train_set,
        chosen_on,
        training,
        metric,
        folder=folder,
        checkpoint_seconds=checkpoint_seconds,
        precision=precision,
        progress=progress_of("training"),
    )
    measured = {
        "validation": best["metric"],
        "best_epoch": best["epoch"],
        PRECISION_METRIC: best[PRECISION_METRIC],
    }
    if method.effective_fit is Fit.COMPRESSED:
        weights_by_matrix = importance(model.body, model, _sample(train_set))
        compressor = _Compressor(backbone, model, weights_by_matrix, chosen_on, metric)
        weights, found = compressor.compress(
            _candidate_ranks(method, limits), train_set, training.seed, progress_of("settling")
        )
        return TrainedAdapter(weights, {**measured, "validation_tuned": best["metric"], **found}, model)
    export = export_lora if method.type is MethodType.LORA else export_bottlenecks
    return TrainedAdapter(_weights(backbone, examples, export(model.body), model.head.export()), measured)


def evaluate(
    backbone: Backbone,
    weights: AdapterWeights,
    rows: Rows,
    work_dir: Path,
    *,
    max_length: int = 128,
) -> dict[str, float]:
    """Return all metrics of the task for the adapter on the base's float32 layers, measured on ``rows``.

    The gate measures the adapter that was saved and loaded, so as it is served.

    Raises ``InvalidInput`` LabelUnknown.
    """
    check_labels_known(rows, weights.labels)
    measured_on = task_dataset(backbone, rows, weights.labels, max_length, work_dir)
    wanted = [Metric.ACCURACY, Metric.MACRO_F1]
    if measured_on.examples.is_token:
        wanted.append(Metric.ENTITY_F1)
    scored = score(adapter_logits(backbone.upper(), weights), measured_on, wanted[0])
    return {metric.value: measured_on.examples.score(scored.predicted, metric) for metric in wanted}


def task_dataset(
    backbone: Backbone, rows: Rows, labels: Sequence[str], max_length: int, folder: Path
) -> TaskDataset:
    """Tokenise ``rows`` and compute their features; read them from ``folder`` if they are there."""
    return _with_features(backbone, _examples(backbone, rows, labels, max_length), folder)


def _examples(backbone: Backbone, rows: Rows, labels: Sequence[str], max_length: int) -> Examples:
    base = backbone.base
    return make_examples(rows, labels, base.tokenizer, min(max_length, base.config.positions))


def _with_features(backbone: Backbone, examples: Examples, folder: Path) -> TaskDataset:
    path = folder / f"{examples.digest(backbone.layers_digest)}.f16"
    return TaskDataset(backbone.features(examples.ids, path), examples)


def adapter_logits(upper: UpperLayers, weights: AdapterWeights) -> BatchFunction:
    """Return the function from features to logits that an adapter, stored or not, computes in float32."""
    whole = weights.as_float32()

    def logits(features: Tensor, mask: Tensor) -> Tensor:
        x = run_layers(upper, whole.layers, features, mask)
        return torch.stack([run_head(whole.head, row, seen) for row, seen in zip(x, mask, strict=True)])

    return logits


def _candidate_ranks(method: Method, limits: AdapterLimits) -> tuple[int, ...]:
    """Return the ranks that compression may choose, ascending."""
    if method.size is not None:
        return (method.size,)
    return tuple(rank for rank in CANDIDATE_RANKS if rank <= limits.max_rank) or (limits.max_rank,)


def _model(
    backbone: Backbone, examples: Examples, method: Method, limits: AdapterLimits, seed: int
) -> TaskModel[UpperLayers]:
    """Return the model to train: all weights of the upper layers, or an adapter in frozen ones."""
    upper = backbone.upper()
    if method.effective_fit is Fit.COMPRESSED:
        upper.layers.requires_grad_(True)
    elif method.type is MethodType.LORA:
        rank = method.size or min(DIRECT_LORA_RANK, limits.max_rank)
        add_lora(upper, rank, method.alpha, seed=seed)
    else:
        placement = method.placement is AdapterPlacement.PARALLEL
        width = method.size or min(BOTTLENECK_WIDTH, limits.max_bottleneck)
        add_bottlenecks(upper, width, "parallel" if placement else "sequential", seed=seed)
    head = HeadModule(backbone.base.config.width, len(examples.labels), examples.task, seed=seed)
    return TaskModel(upper, head)


@dataclass(frozen=True)
class _Compressor:
    """Compresses fine-tuned upper layers to a LoRA; validation rows decide what is kept."""

    backbone: Backbone
    model: TaskModel[UpperLayers]
    importance: ByMatrix
    validation: TaskDataset
    metric: Metric

    def compress(
        self, candidates: Sequence[int], train_set: TrainingSet, seed: int, progress: Progress
    ) -> tuple[AdapterWeights, dict[str, float]]:
        """Return the adapter of the smallest of ``candidates`` that keeps the predictions, and its metrics.

        The distilled adapter is returned if it agrees with the fine-tuned model at least as often.
        """
        decomposition = Decomposition(self.model.body, self._base, self.importance, max(candidates))
        choice = smallest_rank(
            lambda rank: self._quality(self._adapter(decomposition.cut(rank))),
            self._tuned.metric,
            candidates=candidates,
        )
        layers, quality = decomposition.cut(choice.rank), choice.tried[choice.rank]
        distilled = distill_compressed(
            self.backbone.upper(), layers, self.model, train_set, seed=seed, progress=progress
        )
        distilled_quality = self._quality(self._adapter(distilled))
        if distilled_quality.agreement >= quality.agreement:
            layers, quality = distilled, distilled_quality
        return self._adapter(layers), {
            "rank": float(choice.rank),
            "energy_kept": decomposition.energy_kept(choice.rank),
            "agreement_of_cut": choice.tried[choice.rank].agreement,
            "agreement": quality.agreement,
            "validation": quality.metric,
        }

    @cached_property
    def _base(self) -> UpperLayers:
        return self.backbone.upper()

    @cached_property
    def _tuned(self) -> Predictions:
        return score(self.model, self.validation, self.metric)

    def _adapter(self, layers: Mapping[int, LayerAdapter]) -> AdapterWeights:
        return _weights(self.backbone, self.validation.examples, layers, self.model.head.export())

    def _quality(self, adapter: AdapterWeights) -> CutQuality:
        """Return an adapter's metric and its agreement with the fine-tuned model."""
        scored = score(adapter_logits(self._base, adapter), self.validation, self.metric)
        agreement = self.validation.examples.agreement(scored.predicted, self._tuned.predicted)
        return CutQuality(scored.metric, agreement)


def _sample(rows: TrainingSet) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows, evenly spread, of about ``_SAMPLE_TOKENS`` in all: features (B, T, D), mask (B, T) bool."""
    lengths = rows.lengths
    count = max(1, min(len(lengths), int(_SAMPLE_TOKENS / lengths.mean())))
    spread = np.linspace(0, len(lengths) - 1, count).astype(np.int64)
    alike = spread[np.argsort(lengths[spread], kind="stable")]
    for start in range(0, count, _SAMPLE_BATCH):
        yield rows.batch(alike[start : start + _SAMPLE_BATCH])


def _weights(
    backbone: Backbone, examples: Examples, layers: Mapping[int, LayerAdapter], head: Head
) -> AdapterWeights:
    return AdapterWeights(
        task=TaskType(examples.task),
        labels=tuple(examples.labels),
        layers=layers,
        head=head,
        base_digest=backbone.base.digest,
        layers_digest=backbone.layers_digest,
        tag_scheme=examples.tag_scheme,
    )
