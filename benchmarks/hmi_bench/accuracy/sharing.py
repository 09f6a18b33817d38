"""What sharing layers costs in accuracy: children with their parent's layers, and with layers of their own.

The parent's layers are trained on the texts of all children. A child with ``training.steps: 0`` uses them. A
child with layers of its own starts from them and trains on its own texts for as many steps. Adapters have the
same rows, seeds and budget on both.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hmi_api.names import digest_bytes
from hmi_api.resources.domain import DomainTraining
from hmi_api.resources.task_adapter import AdapterTraining
from hmi_bench.accuracy.fits import LAYERS_FOLDER, Answers, fit, trained_layers
from hmi_bench.accuracy.paired import Pair, pair_table
from hmi_bench.accuracy.tasks import Task
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.source import BaseModel
from hmi_runtime.training.backbone import Backbone
from hmi_runtime.training.precision import StepPrecision

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """What each training gets: rows and epochs of an adapter, steps of layers; each seed trains all again."""

    rows: int = 400
    epochs: int = 6
    steps: int = 100
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class SharingCost:
    """Pairs of adapters by child and seed, the first on the parent's layers, the second on the child's own.

    ``layers_bytes`` are those of one Domain's layers.
    """

    pairs: list[Pair]
    layers_bytes: int


def measure_sharing(
    base: BaseModel, tasks: Sequence[Task], folder: Path, budget: Budget, precision: StepPrecision
) -> SharingCost:
    """Train layers and adapters in ``folder``; the tasks, sequence tasks, are the children."""
    pairs = []
    for seed in budget.seeds:
        work = folder / f"seed-{seed}"
        training = DomainTraining(steps=budget.steps, seed=seed)
        parent = work / "parent"
        every_text = list(dict.fromkeys(text for task in tasks for text in task.train.inputs()))
        shared = trained_layers(base, every_text, parent, training, precision)
        for task in tasks:
            child, drawn = work / "children" / task.name, task.limited(budget.rows, len(task.test), seed)
            texts = list(dict.fromkeys(task.train.inputs()))
            own = trained_layers(base, texts, child, training, precision, parent=parent)
            found = [
                _answers(base, layers, drawn, child / name, budget.epochs, seed, precision)
                for name, layers in (("shared", shared), ("own", own))
            ]
            pairs.append(Pair.of(task.name, seed, *found))
            log.info("%s", pairs[-1])
    size = sum(path.stat().st_size for path in (parent / LAYERS_FOLDER).iterdir())
    return SharingCost(pairs, size)


def _answers(
    base: BaseModel,
    layers: DomainLayers,
    task: Task,
    work: Path,
    epochs: int,
    seed: int,
    precision: StepPrecision,
) -> Answers:
    backbone = Backbone.from_layers(base, layers, digest_bytes(str(work).encode()))
    return fit(backbone, task, work, AdapterTraining(epochs=epochs, seed=seed), precision).stored


def sharing_report(cost: SharingCost) -> str:
    """Return the table of accuracies, with the bytes of layers below it."""
    table = pair_table(cost.pairs, "parent's layers", "own layers")
    return f"{table}\n\nThe layers of one Domain: {cost.layers_bytes / 1e6:.1f} MB."
