"""Full fine-tuning, the baseline: all weights of the unsplit encoder and a head, with common settings."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hmi_bench.accuracy.tasks import Task
from hmi_runtime.adapters.heads import HeadModule
from hmi_runtime.models.encoder import Encoder
from hmi_runtime.models.source import BaseModel
from hmi_runtime.training.examples import default_metric, make_examples
from hmi_runtime.training.fine_tuning import TaskDataset, TaskModel, score
from hmi_runtime.training.labelled_data import Rows
from hmi_runtime.training.teacher import TokenInputs


@dataclass(frozen=True)
class Recipe:
    """How a method is trained; the best epoch is chosen on validation rows."""

    learning_rate: float
    epochs: int
    batch_size: int = 16
    max_length: int = 128
    warmup: float = 0.1
    weight_decay: float = 0.01
    dropout: float = 0.1


def full_finetune(
    base: BaseModel, task: Task, recipe: Recipe, seed: int
) -> tuple[float, int, TaskModel[Encoder]]:
    """Train all weights; return the best validation metric, its epoch (from 1) and that epoch's model."""
    torch.manual_seed(seed)
    head = HeadModule(base.config.width, len(task.labels), task.type, dropout=recipe.dropout, seed=seed)
    model = TaskModel(base.encoder().requires_grad_(True), head)
    train = _dataset(base, task, task.train, recipe.max_length)
    lengths = train.lengths.tolist()
    optimiser, schedule = _optimiser(model, recipe, math.ceil(len(lengths) / recipe.batch_size))
    generator = torch.Generator().manual_seed(seed)
    best, best_epoch, best_state = -1.0, 0, model.state_dict()
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        for numbers in _batches(lengths, recipe.batch_size, generator):
            loss = train.loss(model(*train.batch(numbers)), numbers)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        metric = evaluate(base, task, task.validation, model, recipe.max_length)
        if metric > best:
            best, best_epoch, best_state = metric, epoch, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)
    return best, best_epoch, model


def evaluate(base: BaseModel, task: Task, rows: Rows, model: TaskModel[Encoder], max_length: int) -> float:
    """Return accuracy, or the F1 of whole entities for a token task, 0 to 1."""
    dataset = _dataset(base, task, rows, max_length)
    return score(model.eval(), dataset, default_metric(task.type)).metric


def _dataset(base: BaseModel, task: Task, rows: Rows, max_length: int) -> TaskDataset:
    examples = make_examples(rows, task.labels, base.tokenizer, max_length)
    return TaskDataset(TokenInputs(examples.ids, base.config.pad_id), examples)


def _batches(lengths: Sequence[int], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield the numbers of all rows in shuffled batches of rows with similar lengths."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    pool = size * 16
    chunks = []
    for start in range(0, len(order), pool):
        near = sorted(order[start : start + pool], key=lambda row: lengths[row])
        chunks += [near[at : at + size] for at in range(0, len(near), size)]
    for chunk in torch.randperm(len(chunks), generator=generator).tolist():
        yield chunks[chunk]


def _optimiser(
    model: nn.Module, recipe: Recipe, steps_an_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    total = steps_an_epoch * recipe.epochs
    warmup = max(1, round(total * recipe.warmup))
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        fused=True,
    )
    shape: Callable[[int], float] = lambda step: min((step + 1) / warmup, max(0.0, (total - step) / total))  # noqa: E731
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, shape)
