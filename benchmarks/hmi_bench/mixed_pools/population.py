"""A Domain and adapters that are trained on tasks with a label for each text."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hmi_api.resources.task_adapter import AdapterTraining, TaskType
from hmi_bench.accuracy.tasks import Task, corpus, read_tasks
from hmi_bench.runtime_setup import PublishedDomain, publish_domain
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.artifacts.store import ArtifactStore
from hmi_runtime.models.source import BaseModel
from hmi_runtime.training.adapter_training import train_adapter
from hmi_runtime.training.backbone import Backbone

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedTask:
    """A task and its adapter; ``texts`` are those that it was not trained on."""

    name: str
    texts: Sequence[str]
    weights: AdapterWeights
    validation: float
    """Accuracy on the validation rows, 0 to 1."""


@dataclass(frozen=True)
class Population:
    """What every pool serves."""

    artifacts: str
    """Root of the artifact store."""
    domain: PublishedDomain
    tasks: Sequence[TrainedTask]


def make_population(base: BaseModel, data: Path, folder: Path, *, epochs: int) -> Population:
    """Publish a Domain under ``folder / "store"`` and train an adapter on every task below ``data``.

    The Domain's table has all windows of the training texts. Tasks that label words are left out.
    """
    found = read_tasks(data, {})
    tasks = [task for task in found if task.type == TaskType.SEQUENCE_CLASSIFICATION]
    texts = list(dict.fromkeys(text for task in tasks for text in corpus(tasks, task.domain)))
    root = str(folder / "store")
    store = ArtifactStore(root)
    domain = publish_domain(base, store, texts)
    backbone = Backbone.from_version(domain.serving.version, store, folder / "training-cache")
    trained = [_train(backbone, task, folder / "training" / task.name, epochs) for task in tasks]
    return Population(root, domain, trained)


def _train(backbone: Backbone, task: Task, work: Path, epochs: int) -> TrainedTask:
    found = train_adapter(
        backbone,
        task.train,
        task.validation,
        work,
        labels=task.labels,
        training=AdapterTraining(epochs=epochs),
    )
    log.info("%s: %.3f on validation rows", task.name, found.metrics["validation"])
    texts = [text for rows in (task.validation, task.test) for text in rows.inputs()]
    return TrainedTask(task.name, texts, found.weights, found.metrics["validation"])
