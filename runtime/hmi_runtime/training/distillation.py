"""Training of a Domain's layers: the base model is distilled into window-local lower layers and the bridge.

The student is the Domain's layers followed by the base's frozen upper layers; the teacher is the base model.
The loss is 0.5 times the error at the split plus the errors after every upper layer. An error is the mean
squared error over real tokens divided by the variance of the teacher's states there, so that all layers have
equal weight whatever the scale of their states.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from hmi_api.resources.domain import DomainTraining
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.encoder import Encoder, UpperLayers
from hmi_runtime.models.windows import ABSENT, trigrams
from hmi_runtime.training.checkpoint import Checkpoint, generator
from hmi_runtime.training.least_squares_init import LeastSquaresInit
from hmi_runtime.training.optim import (
    BatchSampler,
    Progress,
    make_adamw,
    moving_average,
    optimizer_step,
    set_learning_rate,
)
from hmi_runtime.training.precision import FLOAT32, StepPrecision
from hmi_runtime.training.token_dataset import TokenDataset

SPLIT_WEIGHT = 0.5
BRIDGE_RATE_FACTOR = 3.0
"""The bridge's learning rate relative to the lower layers', which start from pretrained weights."""
WARMUP_STEPS = 30
# With onMiss: Backoff, the shares of windows that are trained without their left token, without the right
# one, and without both.
BACKED_OFF_SHARES = (0.1, 0.1, 0.1)
_STARTING_BATCHES = 16
"""Batches for the least squares that initialise gates and positions."""
_EVALUATION_ROWS = 256
_EVALUATION_BATCH = 32


class Distiller:
    """Computes the states of teacher and student, and the loss, for a batch."""

    def __init__(self, encoder: Encoder, layers: DomainLayers) -> None:
        self._encoder = encoder
        self._layers = layers
        self._upper = UpperLayers(encoder, layers.config.split).requires_grad_(False).eval()

    def teacher_states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Return the base's states at the split and after every upper layer, each (N, D) of real tokens."""
        with torch.no_grad():
            states = self._encoder.hidden_states(ids, mask)[self._layers.config.split :]
            return [state[mask] for state in states]

    def student_states(self, windows: Tensor, mask: Tensor) -> list[Tensor]:
        """Return the student's states (N, D) at the same places, from ``windows`` (B, T, 3)."""
        at_split = represent_windows(self._layers, windows, mask)  # (B, T, D)
        return [state[mask] for state in (at_split, *self._upper.hidden_states(at_split, mask))]

    def loss(self, ids: Tensor, mask: Tensor, windows: Tensor, precision: StepPrecision = FLOAT32) -> Tensor:
        """Return the distillation loss, a float32 scalar; ``precision`` is that of the models' products."""
        with precision.products():
            teacher = self.teacher_states(ids, mask)
        with precision.products():
            student = self.student_states(windows, mask)
        return distillation_loss([state.float() for state in student], [state.float() for state in teacher])


def distillation_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the weighted sum of errors; each tensor is (N, D), the first pair is at the split."""
    errors = [
        functional.mse_loss(ours, theirs) / theirs.var()
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return SPLIT_WEIGHT * errors[0] + torch.stack(errors[1:]).sum()


def back_off_at_random(windows: Tensor, random: torch.Generator) -> Tensor:
    """Return ``windows`` (B, T, 3) with a random share shortened to bigrams and unigrams, centre kept."""
    left, right, both = BACKED_OFF_SHARES
    draw = torch.rand(windows.shape[:-1], generator=random)  # (B, T)
    cut_left = (draw < left) | ((draw >= left + right) & (draw < left + right + both))  # (B, T)
    cut_right = (draw >= left) & (draw < left + right + both)  # (B, T)
    keep_all = torch.zeros_like(cut_left)
    return windows.masked_fill(torch.stack([cut_left, keep_all, cut_right], dim=-1), ABSENT)


def make_optimizer(layers: DomainLayers, training: DomainTraining) -> torch.optim.Optimizer:
    """Return AdamW with one rate for the lower layers and one for the bridge."""
    bridge = [] if layers.bridge is None else list(layers.bridge.parameters())
    in_bridge = {id(parameter) for parameter in bridge}
    lower = [parameter for parameter in layers.parameters() if id(parameter) not in in_bridge]
    rate = training.learning_rate
    return make_adamw([(lower, rate), (bridge, rate * BRIDGE_RATE_FACTOR)])


def distill(
    encoder: Encoder,
    layers: DomainLayers,
    dataset: TokenDataset,
    training: DomainTraining,
    *,
    back_off: bool = False,
    checkpoint_path: Path,
    checkpoint_seconds: float = 30.0,
    fresh: bool = False,
    precision: StepPrecision = FLOAT32,
    progress: Progress = lambda step, steps, metrics: None,
) -> StepPrecision:
    """Train ``layers`` in place on the dataset's training rows; return the precision of the last steps.

    ``back_off``: a share of the windows is trained without one or both neighbours. ``fresh``: the layers are
    the base's own, so gates and positions are initialised by least squares. Resumes from ``checkpoint_path``
    if it exists.
    """
    distiller = Distiller(encoder, layers)
    optimizer = make_optimizer(layers, training)
    rows = dataset.training_rows
    order = BatchSampler(rows, dataset.lengths[rows], training.batch_size, training.seed)
    checkpoint = Checkpoint(checkpoint_path, layers, optimizer, checkpoint_seconds, precision=precision)
    warmup = min(WARMUP_STEPS, max(1, training.steps // 4))
    layers.requires_grad_(True).train()
    first, notes = checkpoint.restore()

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        ids, mask = dataset.batch(order.rows_of(step), encoder.config.pad_id)
        windows = trigrams(ids, mask)  # (B, T, 3)
        if back_off:
            windows = back_off_at_random(windows, generator(training.seed, step))
        return ids, mask, windows

    if fresh and first == 0:
        _init_gates_and_positions(
            distiller, layers, map(batch, range(min(_STARTING_BATCHES, order.steps_per_epoch)))
        )
    for step in range(first, training.steps):
        ids, mask, windows = batch(step)
        set_learning_rate(optimizer, step, training.steps, warmup)
        loss = distiller.loss(ids, mask, windows, checkpoint.precision)
        optimizer_step(loss, layers, optimizer)
        notes["loss"] = moving_average(notes.get("loss"), loss.item())
        checkpoint.save_when_due(step + 1, notes)
        progress(step + 1, training.steps, notes)
    layers.requires_grad_(False).eval()
    return checkpoint.precision


def _init_gates_and_positions(
    distiller: Distiller, layers: DomainLayers, batches: Iterable[tuple[Tensor, Tensor, Tensor]]
) -> None:
    """Initialise gates and positions from ``batches`` of ids (B, T), mask (B, T) and windows (B, T, 3)."""
    init = LeastSquaresInit(layers.config.encoder.positions, layers.config.encoder.width)
    with torch.no_grad():
        layers.gates.fill_(1.0)
        for ids, mask, windows in batches:
            init.add(parts_of_windows(layers, windows, mask), distiller.teacher_states(ids, mask)[0], mask)
        gates, positions = init.solve()
        layers.gates.copy_(gates)
        layers.position.copy_(positions)


def evaluate_distillation(encoder: Encoder, layers: DomainLayers, dataset: TokenDataset) -> dict[str, float]:
    """Return metrics on held-out rows: the loss, and a token's mean cosine similarity to the base model.

    The similarity is that of hidden states, at the split and at the output.
    """
    distiller = Distiller(encoder, layers)
    numbers = dataset.held_out_rows[:_EVALUATION_ROWS]
    loss = at_split = at_output = 0.0
    tokens = 0
    with torch.no_grad():
        for ids, mask in dataset.batches(numbers, _EVALUATION_BATCH, encoder.config.pad_id):
            ours, theirs = (
                distiller.student_states(trigrams(ids, mask), mask),
                distiller.teacher_states(ids, mask),
            )
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


def represent_windows(layers: DomainLayers, windows: Tensor, mask: Tensor) -> Tensor:
    """Return the representation at the split (B, T, D) of ``windows`` (B, T, 3) int64, ``mask`` (B, T).

    Like ``DomainLayers.represent``, but for any windows instead of a text's own trigrams.
    """
    return layers.combine_windows(parts_of_windows(layers, windows, mask), mask)


def parts_of_windows(layers: DomainLayers, windows: Tensor, mask: Tensor) -> Tensor:
    """Return the gated parts (B, T, 3, D) of ``windows`` (B, T, 3) int64, zero where ``mask`` is False."""
    real = windows[mask]  # (N, 3)
    base = layers.config.encoder.vocab_size + 1
    left, centre, right = (real - ABSENT).unbind(1)
    keys = (left * base + centre) * base + right  # (N,), one number a window: faster to sort than rows
    unique, place = torch.unique(keys, return_inverse=True)  # (W,), (N,)
    distinct = (
        torch.stack([unique // base**2, unique // base % base, unique % base], dim=1) + ABSENT
    )  # (W, 3)
    # For three tokens plain products are faster than the set-up of a fused kernel for each head.
    with sdpa_kernel(SDPBackend.MATH):
        computed = layers.window_outputs(distinct)  # (W, 3, D)
    # The gradient of plain indexing would add repeated windows in an order that depends on the threads.
    values = computed.index_select(0, place)  # (N, 3, D)
    parts = values.new_zeros((*mask.shape, *values.shape[1:]))  # (B, T, 3, D)
    parts[mask] = values
    return parts
