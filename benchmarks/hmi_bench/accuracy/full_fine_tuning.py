"""Full fine-tuning, the bar: every weight of the unsplit encoder and a head, as its users do it."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hmi_bench.accuracy.tasks import Rows, Task
from hmi_runtime.models.encoder import Encoder
from hmi_runtime.models.source import BaseModel
from hmi_runtime.training.metrics import accuracy, entity_f1

IGNORED = -100
_EVALUATION_BATCH = 64


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


@dataclass(frozen=True)
class Encoded:
    """Tokenised rows: ids, and a target a row, or one a token (``IGNORED`` on all but first sub-tokens).

    ``words`` are, of a token task, the places of each row's first sub-tokens and the words that they begin.
    """

    ids: list[list[int]]
    targets: list[list[int]]
    words: list[list[tuple[int, int]]]


class TaskModel(nn.Module):
    """An encoder with a linear head: on the first token and the mean, or on every token."""

    def __init__(self, encoder: Encoder, labels: int, *, is_token: bool, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.is_token = is_token
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.config.width * (1 if is_token else 2), labels)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits (B, T, N) of a token task, (B, N) of a sequence task."""
        hidden = self.encoder(ids, mask)  # (B, T, D)
        if not self.is_token:
            weight = mask[:, :, None].to(hidden.dtype)  # (B, T, 1)
            mean = (hidden * weight).sum(1) / weight.sum(1)  # (B, D)
            hidden = torch.cat([hidden[:, 0], mean], dim=1)  # (B, 2D)
        logits: Tensor = self.head(self.dropout(hidden))
        return logits


def encode(base: BaseModel, task: Task, rows: Rows, max_length: int) -> Encoded:
    """Tokenise rows and number their labels; a label that training never showed counts as wrong (``-1``)."""
    index = {label: number for number, label in enumerate(task.labels)}
    if not task.is_token:
        encodings = base.tokenizer.encode(rows.texts, max_length)
        return Encoded([e.ids for e in encodings], [[index.get(label, -1)] for label in rows.labels], [])
    encodings = base.tokenizer.encode_words(rows.words, max_length)
    words = [encoding.first_tokens() for encoding in encodings]
    targets = []
    for encoding, first, tags in zip(encodings, words, rows.tags, strict=True):
        row = [IGNORED] * len(encoding.ids)
        for place, word in first:
            row[place] = index.get(tags[word], -1)
        targets.append(row)
    return Encoded([e.ids for e in encodings], targets, words)


def full_finetune(base: BaseModel, task: Task, recipe: Recipe, seed: int) -> tuple[float, int, TaskModel]:
    """Tune everything; return the best validation metric, its epoch (from 1) and the model at it."""
    torch.manual_seed(seed)
    encoder = base.encoder().requires_grad_(True)
    model = TaskModel(encoder, len(task.labels), is_token=task.is_token, dropout=recipe.dropout)
    train = encode(base, task, task.train, recipe.max_length)
    optimiser, schedule = _optimiser(model, recipe, math.ceil(len(train.ids) / recipe.batch_size))
    generator = torch.Generator().manual_seed(seed)
    best, best_epoch, best_state = -1.0, 0, model.state_dict()
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        for ids, mask, targets in batches(train, recipe.batch_size, base.config.pad_id, generator):
            logits = model(ids, mask)
            loss = functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=IGNORED
            )
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


def evaluate(base: BaseModel, task: Task, rows: Rows, model: TaskModel, max_length: int) -> float:
    """Return accuracy, or the F1 of whole entities for a token task, 0 to 1."""
    encoded = encode(base, task, rows, max_length)
    model.eval()
    order = sorted(range(len(encoded.ids)), key=lambda row: len(encoded.ids[row]))
    predicted: list[list[int]] = [[] for _ in order]
    with torch.no_grad():
        for start in range(0, len(order), _EVALUATION_BATCH):
            chosen = order[start : start + _EVALUATION_BATCH]
            ids, mask, _ = _pad(encoded, chosen, base.config.pad_id)
            best = model(ids, mask).argmax(-1)
            for place, row in enumerate(chosen):
                predicted[row] = best[place].tolist() if task.is_token else [int(best[place])]
    if not task.is_token:
        return accuracy([str(t[0]) for t in encoded.targets], [str(p[0]) for p in predicted])
    return entity_f1(rows.tags, _tags(task, rows, encoded, predicted))


def _tags(task: Task, rows: Rows, encoded: Encoded, predicted: list[list[int]]) -> list[list[str]]:
    """Return a tag a word: what its first sub-token was given, O for words that have none."""
    result = []
    for words, first, guesses in zip(rows.words, encoded.words, predicted, strict=True):
        tags = ["O"] * len(words)
        for place, word in first:
            tags[word] = task.labels[guesses[place]]
        result.append(tags)
    return result


def batches(
    encoded: Encoded, size: int, pad_id: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield shuffled (ids (B, T), mask (B, T), targets) with rows of like length together."""
    order = torch.randperm(len(encoded.ids), generator=generator).tolist()
    pool = size * 16
    chunks = []
    for start in range(0, len(order), pool):
        near = sorted(order[start : start + pool], key=lambda row: len(encoded.ids[row]))
        chunks += [near[at : at + size] for at in range(0, len(near), size)]
    for chunk in torch.randperm(len(chunks), generator=generator).tolist():
        yield _pad(encoded, chunks[chunk], pad_id)


def _pad(encoded: Encoded, chosen: list[int], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    length = max(len(encoded.ids[row]) for row in chosen)
    ids = torch.full((len(chosen), length), pad_id)  # (B, T)
    mask = torch.zeros(len(chosen), length, dtype=torch.bool)  # (B, T)
    targets = torch.full((len(chosen), length), IGNORED)  # (B, T)
    for place, row in enumerate(chosen):
        count = len(encoded.ids[row])
        ids[place, :count] = torch.tensor(encoded.ids[row])
        mask[place, :count] = True
        targets[place, : len(encoded.targets[row])] = torch.tensor(encoded.targets[row])
    per_row = all(len(encoded.targets[row]) == 1 for row in chosen)
    return ids, mask, targets[:, 0] if per_row else targets


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
