"""The hPLM, and adapters on the unsplit model, trained by the product's own code."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from hmi_api.names import digest_bytes
from hmi_api.resources.domain import DomainTraining
from hmi_api.resources.task_adapter import AdapterTraining, Teacher
from hmi_bench.accuracy.fits import trained_layers
from hmi_bench.accuracy.full_fine_tuning import Recipe
from hmi_bench.accuracy.halving import changes_by_halving
from hmi_bench.accuracy.tasks import Task, corpus
from hmi_runtime.adapters.executor import UpperExecutor
from hmi_runtime.adapters.heads import run_heads
from hmi_runtime.adapters.kernels import default_kernel
from hmi_runtime.adapters.quantization import calibration_sample
from hmi_runtime.adapters.slot_pool import SlotLimits, SlotPool
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.source import BaseModel
from hmi_runtime.training.adapter_training import adapter_logits, task_dataset, train_adapter
from hmi_runtime.training.backbone import Backbone, BatchFunction
from hmi_runtime.training.examples import default_metric
from hmi_runtime.training.fine_tuning import score
from hmi_runtime.training.precision import FLOAT32, PRECISION_METRIC, StepPrecision
from hmi_runtime.training.teacher import sample_texts

Tested = tuple[float, int, float, dict[str, float]]
"""Validation metric, best epoch, test metric, and what else was measured."""


@dataclass(frozen=True)
class Hierarchical:
    """Trains adapters on each domain's own layers; domains are trained once and kept in ``folder``."""

    base: BaseModel
    tasks: list[Task]
    steps: int
    unlabelled_rows: int
    folder: Path
    precision: StepPrecision = FLOAT32
    bridge_heads: int = 4

    def hplm(self, task: Task, recipe: Recipe, seed: int) -> Tested:
        """Train and test a task on its domain's window-local layers, with a teacher.

        The teacher labels training texts of the domain's tasks, without their labels.
        """
        rows = self.unlabelled_rows
        known = {*task.train.inputs(), *task.validation.inputs(), *task.test.inputs()}
        unlabelled = sample_texts(corpus(self.tasks, task.domain), rows, without=known)
        return self._train_and_test(self._windows(task), task, recipe, seed, f"taught-{rows}", unlabelled)

    def untaught(self, task: Task, recipe: Recipe, seed: int) -> Tested:
        """Train and test a task on its domain's window-local layers, without a teacher."""
        return self._train_and_test(self._windows(task), task, recipe, seed, f"untaught-{self.bridge_heads}")

    def bridgeless(self, task: Task, recipe: Recipe, seed: int) -> Tested:
        """Train and test a task as ``untaught`` does, on a domain trained without a bridge."""
        return replace(self, bridge_heads=0).untaught(task, recipe, seed)

    def _windows(self, task: Task) -> Backbone:
        layers = self.domain_layers(task.domain)
        name = f"{task.domain}-{self.steps}-{self.bridge_heads}"
        return Backbone.from_layers(self.base, layers, digest_bytes(name.encode()))

    def unsplit(self, task: Task, recipe: Recipe, seed: int) -> Tested:
        """Train and test a task on the base model's own lower layers."""
        split = self.base.config.layers // 2
        return self._train_and_test(
            Backbone.from_unsplit_base(self.base, split), task, recipe, seed, "unsplit"
        )

    def domain_layers(self, domain: str) -> DomainLayers:
        """Return a domain's layers; train them on its tasks' training texts if the folder has none."""
        name = f"{domain.replace('/', '.')}-{self.steps}-{self.bridge_heads}"
        return trained_layers(
            self.base,
            corpus(self.tasks, domain),
            self.folder / "domains" / name,
            DomainTraining(steps=self.steps),
            self.precision,
            bridge_heads=self.bridge_heads,
        )

    def _train_and_test(
        self,
        backbone: Backbone,
        task: Task,
        recipe: Recipe,
        seed: int,
        method: str,
        unlabelled: Sequence[str] | None = None,
    ) -> Tested:
        """Train an adapter, with a teacher if ``unlabelled`` texts are given, and test it."""
        name = f"{task.name.replace('/', '.')}-{method}-{recipe.learning_rate:g}-{seed}"
        work = self.folder / "fits" / name
        trained = train_adapter(
            backbone,
            task.train,
            task.validation,
            work,
            labels=task.labels,
            training=AdapterTraining(
                epochs=recipe.epochs,
                batch_size=recipe.batch_size,
                learning_rate=recipe.learning_rate,
                max_length=recipe.max_length,
                seed=seed,
                teacher=Teacher(epochs=recipe.epochs) if unlabelled is not None else None,
            ),
            unlabelled=unlabelled or (),
            teacher_dir=self.folder / "teachers" / str(seed),
            precision=self.precision,
        )
        rows = task_dataset(backbone, task.test, task.labels, recipe.max_length, work / "features")
        stored = trained.weights.as_stored()
        served = adapter_logits(backbone.upper(), stored)
        test, before_the_cut, int8 = (
            score(logits, rows, default_metric(task.type)).metric
            for logits in (served, trained.tuned or served, _int8_logits(backbone, stored))
        )
        halving = changes_by_halving(served, adapter_logits(backbone.upper(), trained.weights), rows)
        detail = {
            "stored_bytes": float(stored.nbytes),
            "float32_bytes": float(trained.weights.nbytes),
            "predictions": halving.predictions,
            "predictions_changed_by_halving": halving.other_predictions,
            "probability_changed_by_halving": halving.probability,
            "test_before_the_cut": before_the_cut,
            "test_int8": int8,
            "rank": trained.metrics["rank"],
            "energy_kept": trained.metrics["energy_kept"],
            PRECISION_METRIC: trained.metrics[PRECISION_METRIC],
        }
        return trained.metrics["validation"], int(trained.metrics["best_epoch"]), test, detail


def _int8_logits(backbone: Backbone, weights: AdapterWeights) -> BatchFunction:
    """Return the function from features to the adapter's logits, by the runtime's int8 executor."""
    upper = backbone.upper()
    kernel = default_kernel("int8", upper=upper)
    limits = SlotLimits(max_rank=weights.rank, max_labels=len(weights.labels), dtype=kernel.slot_dtype)
    pool = SlotPool(upper, 1, limits)
    pool.write(0, weights)
    sample = calibration_sample(backbone.encoder, backbone.split)
    executor = UpperExecutor(upper, pool, kernel, sample=sample)

    def logits(features: Tensor, mask: Tensor) -> Tensor:
        slots = [0] * len(features)
        return torch.stack(run_heads(pool, executor.run(features, mask, slots), mask, slots))

    return logits
