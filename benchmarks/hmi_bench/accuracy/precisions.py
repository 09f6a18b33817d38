"""What training in bfloat16 costs in accuracy: pairs of trainings that differ only in their precision.

A pair has one task and one seed. Both trainings, one in each precision, have the same rows in the same order,
and each has a Domain, also trained in its precision. Compression is in float32, as in the product, and can
choose another rank for the smallest difference, so the layers before compression are compared too.
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hmi_api.names import digest_bytes
from hmi_api.resources.domain import DomainTraining
from hmi_api.resources.task_adapter import AdapterTraining, TaskType, Teacher
from hmi_bench import results
from hmi_bench.accuracy.fits import Fitted, fit, trained_layers
from hmi_bench.accuracy.paired import Pair, difference, pair_table
from hmi_bench.accuracy.tasks import Task, corpus, read_tasks
from hmi_bench.base_models import open_base
from hmi_runtime.models.source import BaseModel
from hmi_runtime.training.backbone import Backbone
from hmi_runtime.training.precision import BFLOAT16, FLOAT32, StepPrecision
from hmi_runtime.training.teacher import sample_texts

log = logging.getLogger(__name__)
_STORED, _TUNED = "adapters as stored", "before compression"


@dataclass(frozen=True)
class PrecisionPlan:
    """Parameters: the folder of task folders, whose sequence tasks are trained, and the budget of a training.

    ``tasks`` are beginnings of paths, all if absent; ``domains`` is a JSON file that maps paths to domains.
    """

    data: Path
    domains: Path | None = None
    base: str = "minilm"
    tasks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    rows: int = 400
    validation_rows: int = 300
    test_rows: int = 2000
    epochs: int = 6
    steps: int = 50
    teacher: bool = False
    rank: int | None = None
    """Of all adapters; if absent, compression chooses it, which differs by chance."""

    def folder(self, out: Path) -> Path:
        """Where the pairs of this budget are kept."""
        budget = f"{self.rows}-rows-{self.epochs}-epochs-{self.steps}-steps"
        also = f"{'-teacher' if self.teacher else ''}{f'-rank-{self.rank}' if self.rank else ''}"
        return out / f"training-accuracy-{budget}{also}"


def run_precisions(out: Path, plan: PrecisionPlan) -> str:
    """Train the pairs that ``out`` does not have yet; write ``training-accuracy.json``, return the report.

    Several processes can share ``out`` if their tasks have different domains.
    """
    tasks = [
        task
        for task in read_tasks(plan.data, json.loads(plan.domains.read_text()) if plan.domains else {})
        if task.type is TaskType.SEQUENCE_CLASSIFICATION
    ]
    folder = plan.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [task for task in tasks if not plan.tasks or task.name.startswith(plan.tasks)]
    with TemporaryDirectory(prefix="hmi-base-") as name:
        study = _Study(open_base(plan.base, Path(name)), tasks, folder, plan)
        for seed in plan.seeds:
            for task in wanted:
                path = folder / f"{task.name.replace('/', '.')}-{seed}.json"
                if not path.is_file():
                    pairs = study.pairs(task, seed)
                    path.write_text(
                        json.dumps({kind: asdict(pair) for kind, pair in pairs.items()}, indent=1)
                    )
                    log.info("%s, seed %d: %.2f points", task.name, seed, pairs[_STORED].points)
    on_file = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    found = {kind: [Pair(**pairs[kind]) for pairs in on_file] for kind in (_STORED, _TUNED)}
    results.write_json(
        out / "training-accuracy.json",
        plan={name: str(value) for name, value in asdict(plan).items()},
        pairs=on_file,
        difference={kind: asdict(difference(pairs)) for kind, pairs in found.items()},
    )
    return "\n\n".join(
        f"{kind}:\n\n{pair_table(pairs, FLOAT32.name, BFLOAT16.name)}" for kind, pairs in found.items()
    )


@dataclass(frozen=True)
class _Study:
    """Trains pairs; Domains are trained once for each seed and precision and kept in ``folder``."""

    base: BaseModel
    tasks: list[Task]
    folder: Path
    plan: PrecisionPlan

    def pairs(self, task: Task, seed: int) -> dict[str, Pair]:
        """Train ``task`` in both precisions; compare the adapters, and what they were compressed from."""
        drawn = task.with_unused_rows(self.plan.rows, self.plan.validation_rows, self.plan.test_rows, seed)
        exact, fast = (self._fitted(drawn, seed, precision) for precision in (FLOAT32, BFLOAT16))
        log.info("%s, seed %d: ranks %d and %d", task.name, seed, exact.rank, fast.rank)
        return {
            _STORED: Pair.of(task.name, seed, exact.stored, fast.stored),
            _TUNED: Pair.of(task.name, seed, exact.tuned, fast.tuned),
        }

    def _fitted(self, task: Task, seed: int, precision: StepPrecision) -> Fitted:
        texts = corpus(self.tasks, task.domain)
        domain = f"{task.domain.replace('/', '.')}-{precision.name}-{seed}"
        layers = trained_layers(
            self.base,
            texts,
            self.folder / "domains" / domain,
            DomainTraining(steps=self.plan.steps, seed=seed),
            precision,
        )
        training = AdapterTraining(epochs=self.plan.epochs, seed=seed)
        unlabelled: list[str] = []
        if self.plan.teacher:
            training = training.model_copy(update={"teacher": Teacher(epochs=self.plan.epochs)})
            known = {*task.train.inputs(), *task.validation.inputs(), *task.test.inputs()}
            unlabelled = sample_texts(texts, self.plan.rows, without=known)
        backbone = Backbone.from_layers(self.base, layers, digest_bytes(domain.encode()))
        with TemporaryDirectory(prefix="hmi-fit-") as work:
            return fit(backbone, task, Path(work), training, precision, unlabelled, self.plan.rank)
