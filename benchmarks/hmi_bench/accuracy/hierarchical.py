"""The hPLM and its nearest relative, adapters on the unsplit model, fitted by the product's own programs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from hmi_api.names import digest_bytes
from hmi_api.resources.domain import DomainTraining
from hmi_api.resources.task_adapter import AdapterTraining, Teacher
from hmi_bench.accuracy.full_fine_tuning import Recipe
from hmi_bench.accuracy.tasks import Rows, Task, corpus
from hmi_runtime.adapters.executor import UpperExecutor
from hmi_runtime.adapters.heads import run_heads
from hmi_runtime.adapters.quantization import calibration_sample
from hmi_runtime.adapters.slot_pool import SlotLimits, SlotPool
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.source import BaseModel
from hmi_runtime.training.adapter_training import TrainedAdapter, adapter_logits, task_dataset, train_adapter
from hmi_runtime.training.backbone import Backbone, BatchFunction
from hmi_runtime.training.distillation import distill
from hmi_runtime.training.examples import default_metric
from hmi_runtime.training.fine_tuning import score
from hmi_runtime.training.labelled_data import LabelledRows, TaggedRows
from hmi_runtime.training.teacher import sample_texts
from hmi_runtime.training.token_dataset import TokenDataset

Tested = tuple[float, int, float, dict[str, float]]
"""Validation metric, best epoch, test metric, and what else was measured."""


@dataclass(frozen=True)
class Hierarchical:
    """Fits adapters over each domain's own layers; domains are trained once and kept in ``folder``."""

    base: BaseModel
    tasks: list[Task]
    steps: int
    unlabelled_rows: int
    folder: Path
    bridge_heads: int = 4

    def hplm(self, task: Task, recipe: Recipe, seed: int) -> Tested:
        """Fit and test a task on its domain's window-local layers, taught by a whole model.

        The teacher labels training texts of the domain's tasks, whose labels nobody sees.
        """
        rows = self.unlabelled_rows
        known = {*task.train.plain(), *task.validation.plain(), *task.test.plain()}
        unlabelled = sample_texts(corpus(self.tasks, task.domain), rows, without=known)
        return self._fit(self._windows(task), task, recipe, seed, f"taught-{rows}", unlabelled)

    def untaught(self, task: Task, recipe: Recipe, seed: int) -> Tested:
        """Fit and test a task on its domain's window-local layers, by its labels alone."""
        return self._fit(self._windows(task), task, recipe, seed, f"untaught-{self.bridge_heads}")

    def bridgeless(self, task: Task, recipe: Recipe, seed: int) -> Tested:
        """Fit and test a task as ``untaught`` does, on a domain that was trained without a bridge."""
        return replace(self, bridge_heads=0).untaught(task, recipe, seed)

    def _windows(self, task: Task) -> Backbone:
        layers = self.domain_layers(task.domain)
        name = f"{task.domain}-{self.steps}-{self.bridge_heads}"
        return Backbone.from_layers(self.base, layers, digest_bytes(name.encode()))

    def unsplit(self, task: Task, recipe: Recipe, seed: int) -> Tested:
        """Fit and test a task on the base model's own lower layers."""
        split = self.base.config.layers // 2
        return self._fit(Backbone.from_unsplit_base(self.base, split), task, recipe, seed, "unsplit")

    def domain_layers(self, domain: str) -> DomainLayers:
        """Return a domain's trained layers, from the folder or trained now on its tasks' training texts."""
        work = self.folder / "domains" / f"{domain.replace('/', '.')}-{self.steps}-{self.bridge_heads}"
        saved = work / "layers"
        if not saved.is_dir():
            encoder = self.base.encoder()
            layers = DomainLayers.from_encoder(
                encoder,
                self.base.config.layers // 2,
                bridge_heads=self.bridge_heads,
                bridge_head_size=24,
                seed=0,
            )
            distill(
                encoder,
                layers,
                TokenDataset.write(work / "corpus", corpus(self.tasks, domain), self.base.tokenizer, 128),
                DomainTraining(steps=self.steps),
                checkpoint_path=work / "distillation.safetensors",
                fresh=True,
            )
            part = work / "layers.part"
            part.mkdir(exist_ok=True)
            layers.save(part)
            part.rename(saved)
        return DomainLayers.load(saved, self.base.encoder())

    def _fit(
        self,
        backbone: Backbone,
        task: Task,
        recipe: Recipe,
        seed: int,
        method: str,
        unlabelled: Sequence[str] | None = None,
    ) -> Tested:
        """Fit, by a teacher's words where there is ``unlabelled`` text, and test."""
        work = (
            self.folder / "fits" / f"{task.name.replace('/', '.')}-{method}-{recipe.learning_rate:g}-{seed}"
        )
        fitted = self._fitted(backbone, task, recipe, seed, work, unlabelled)
        rows = task_dataset(
            backbone, as_labelled(task.test), fitted.weights.labels, recipe.max_length, work / "features"
        )
        metric = default_metric(fitted.weights.task)
        served = adapter_logits(backbone.upper(), fitted.weights)
        test, before_the_cut, int8 = (
            score(logits, rows, metric).metric
            for logits in (served, fitted.tuned or served, _int8_logits(backbone, fitted.weights))
        )
        detail = {
            "test_before_the_cut": before_the_cut,
            "test_int8": int8,
            "rank": fitted.metrics["rank"],
            "energy_kept": fitted.metrics["energy_kept"],
        }
        return fitted.metrics["validation"], int(fitted.metrics["best_epoch"]), test, detail

    def _fitted(
        self,
        backbone: Backbone,
        task: Task,
        recipe: Recipe,
        seed: int,
        work: Path,
        unlabelled: Sequence[str] | None,
    ) -> TrainedAdapter:
        training = AdapterTraining(
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            max_length=recipe.max_length,
            seed=seed,
            teacher=Teacher(epochs=recipe.epochs) if unlabelled is not None else None,
        )
        return train_adapter(
            backbone,
            as_labelled(task.train),
            as_labelled(task.validation),
            work,
            labels=task.labels,
            training=training,
            unlabelled=unlabelled or (),
            teacher_dir=self.folder / "teachers" / str(seed),
        )


def _int8_logits(backbone: Backbone, weights: AdapterWeights) -> BatchFunction:
    """Return the adapter's logits on upper layers quantised to int8, by the executor that serves them."""
    upper = backbone.upper()
    limits = SlotLimits(max_rank=weights.rank, max_labels=len(weights.labels))
    pool = SlotPool(upper, 1, limits)
    pool.write(0, weights)
    sample = calibration_sample(backbone.encoder, backbone.split)
    executor = UpperExecutor(upper, pool, "int8", sample=sample)

    def logits(features: Tensor, mask: Tensor) -> Tensor:
        slots = [0] * len(features)
        return torch.stack(run_heads(pool, executor.run(features, mask, slots), mask, slots))

    return logits


def as_labelled(rows: Rows) -> LabelledRows | TaggedRows:
    """Return rows as the training programs take them."""
    if rows.tags:
        return TaggedRows.of(rows.words, rows.tags)
    return LabelledRows(rows.texts, rows.labels)
