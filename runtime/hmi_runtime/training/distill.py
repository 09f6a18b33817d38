"""Domain training: the window-local lower layers and the bridge learn to stand in for the base's own.

The student is the Domain's layers followed by the base's frozen upper layers; the teacher is the base
model. The loss is 0.5 times the error at the split plus that after every upper layer, each a mean squared
error over real tokens divided by the variance of the teacher's states there, so that a layer counts by how
much of its variation is missed and not by its scale.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from hmi_runtime.models import ABSENT, DomainLayers, Encoder, UpperLayers, trigrams
from hmi_runtime.training.checkpoint import Checkpoint, generator
from hmi_runtime.training.descent import Progress, descend, set_learning_rate, smoothed
from hmi_runtime.training.represent import parts_of_windows, represent_windows
from hmi_runtime.training.schedule import BatchOrder, learning_rate_factor
from hmi_runtime.training.spool import TokenSpool
from hmi_runtime.training.start import StartingPoint

SPLIT_WEIGHT = 0.5
BRIDGE_RATE_FACTOR = 3.0
"""The bridge's rate over the lower layers': they start from the base's own weights, it from nothing."""
WARMUP_STEPS = 30

# Of the windows of a Domain that backs off, what share is trained without its left token, without its
# right one, and without both.
BACKED_OFF_SHARES = (0.1, 0.1, 0.1)

_STARTING_BATCHES = 16
"""Batches that gates and positions are fitted to before the first step."""

_EVALUATION_ROWS = 256
_EVALUATION_BATCH = 32


@dataclass(frozen=True)
class Distillation:
    """How long and how hard to train; the defaults are the recipe that was measured."""

    steps: int = 400
    batch_size: int = 24
    learning_rate: float = 1e-3
    seed: int = 0
    back_off: bool = False


class Distiller:
    """Teacher and student over one batch at a time."""

    def __init__(self, encoder: Encoder, layers: DomainLayers) -> None:
        self._encoder = encoder
        self._layers = layers
        self._upper = UpperLayers(encoder, layers.config.split).requires_grad_(False).eval()

    def teach(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Return the base's states at the split and after every upper layer, each (N, D) of real tokens."""
        with torch.no_grad():
            states = self._encoder.hidden_states(ids, mask)[self._layers.config.split :]
            return [state[mask] for state in states]

    def learn(self, windows: Tensor, mask: Tensor) -> list[Tensor]:
        """Return the student's states (N, D) at the same places, from ``windows`` (B, T, 3)."""
        at_split = represent_windows(self._layers, windows, mask)  # (B, T, D)
        return [state[mask] for state in (at_split, *self._upper.hidden_states(at_split, mask))]

    def loss(self, ids: Tensor, mask: Tensor, windows: Tensor) -> Tensor:
        """Return the distillation loss, a scalar."""
        return distillation_loss(self.learn(windows, mask), self.teach(ids, mask))


def distillation_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the weighted sum of errors; each tensor is (N, D), the first pair is at the split."""
    errors = [
        functional.mse_loss(ours, theirs) / theirs.var()
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return SPLIT_WEIGHT * errors[0] + torch.stack(errors[1:]).sum()


def back_off_at_random(windows: Tensor, random: torch.Generator) -> Tensor:
    """Return ``windows`` (B, T, 3) with a share of them cut to bigrams and unigrams, centre kept."""
    left, right, both = BACKED_OFF_SHARES
    draw = torch.rand(windows.shape[:-1], generator=random)  # (B, T)
    cut_left = (draw < left) | ((draw >= left + right) & (draw < left + right + both))  # (B, T)
    cut_right = (draw >= left) & (draw < left + right + both)  # (B, T)
    keep_all = torch.zeros_like(cut_left)
    return windows.masked_fill(torch.stack([cut_left, keep_all, cut_right], dim=-1), ABSENT)


def make_optimizer(layers: DomainLayers, config: Distillation) -> torch.optim.Optimizer:
    """Return AdamW with one rate for the lower layers and one for the bridge."""
    bridge = [] if layers.bridge is None else list(layers.bridge.parameters())
    in_bridge = {id(parameter) for parameter in bridge}
    lower = [parameter for parameter in layers.parameters() if id(parameter) not in in_bridge]
    groups = [{"params": lower, "lr": config.learning_rate, "peak": config.learning_rate}]
    if bridge:
        rate = config.learning_rate * BRIDGE_RATE_FACTOR
        groups.append({"params": bridge, "lr": rate, "peak": rate})
    return torch.optim.AdamW(groups, fused=True)


def distill(
    encoder: Encoder,
    layers: DomainLayers,
    spool: TokenSpool,
    config: Distillation,
    *,
    checkpoint_path: Path,
    checkpoint_seconds: float = 30.0,
    fresh: bool = False,
    progress: Progress = lambda step, steps, metrics: None,
) -> None:
    """Train ``layers`` in place on the spool's training rows.

    ``fresh``: the layers are the base's own, so gates and positions begin where least squares puts them.
    Goes on from ``checkpoint_path`` where one is; the caller removes it once the layers are safe.
    """
    distiller = Distiller(encoder, layers)
    optimizer = make_optimizer(layers, config)
    rows = spool.training_rows
    order = BatchOrder(rows, spool.lengths[rows], config.batch_size, config.seed)
    checkpoint = Checkpoint(checkpoint_path, layers, optimizer, checkpoint_seconds)
    warmup = min(WARMUP_STEPS, max(1, config.steps // 4))
    layers.requires_grad_(True).train()
    first, notes = checkpoint.restore()

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        ids, mask = spool.batch(order.rows_of(step), encoder.config.pad_id)
        windows = trigrams(ids, mask)  # (B, T, 3)
        if config.back_off:
            windows = back_off_at_random(windows, generator(config.seed, step))
        return ids, mask, windows

    if fresh and first == 0:
        _start_well(distiller, layers, map(batch, range(min(_STARTING_BATCHES, order.steps_per_epoch))))
    for step in range(first, config.steps):
        ids, mask, windows = batch(step)
        set_learning_rate(optimizer, learning_rate_factor(step, config.steps, warmup))
        loss = distiller.loss(ids, mask, windows)
        descend(loss, layers, optimizer)
        notes["loss"] = smoothed(notes.get("loss"), loss.item())
        checkpoint.save_when_due(step + 1, notes)
        progress(step + 1, config.steps, notes)
    layers.requires_grad_(False).eval()


def _start_well(
    distiller: Distiller, layers: DomainLayers, batches: Iterable[tuple[Tensor, Tensor, Tensor]]
) -> None:
    """Fit gates and positions to ``batches`` of ids (B, T), mask (B, T) and windows (B, T, 3)."""
    point = StartingPoint(layers.config.encoder.positions, layers.config.encoder.width)
    with torch.no_grad():
        layers.gates.fill_(1.0)
        for ids, mask, windows in batches:
            point.add(parts_of_windows(layers, windows, mask), distiller.teach(ids, mask)[0], mask)
        gates, positions = point.solve()
        layers.gates.copy_(gates)
        layers.position.copy_(positions)


def evaluate_distillation(encoder: Encoder, layers: DomainLayers, spool: TokenSpool) -> dict[str, float]:
    """Return how near the student comes on held-out rows: the loss, and the mean cosine of a token's
    state to the base model's, at the split and at the output.
    """
    distiller = Distiller(encoder, layers)
    numbers = spool.held_out_rows[:_EVALUATION_ROWS]
    loss = at_split = at_output = 0.0
    tokens = 0
    with torch.no_grad():
        for ids, mask in spool.batches(numbers, _EVALUATION_BATCH, encoder.config.pad_id):
            ours, theirs = distiller.learn(trigrams(ids, mask), mask), distiller.teach(ids, mask)
            count = int(mask.sum())
            loss += distillation_loss(ours, theirs).item() * count
            at_split += functional.cosine_similarity(ours[0], theirs[0]).sum().item()
            at_output += functional.cosine_similarity(ours[-1], theirs[-1]).sum().item()
            tokens += count
    return {
        "distillation_loss": loss / tokens,
        "cosine_at_split": at_split / tokens,
        "cosine_at_output": at_output / tokens,
    }
