"""A short distillation after compression: the adapter learns the predictions of the fine-tuned model.

Compression (``adapters.compression``) is optimal for each matrix by itself, and to second order only. A few
steps of gradient descent on KL(tuned || compressed), over the training rows, fit all factors, biases and
norms together and restore most of the predictions that compression changed.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hmi_runtime.adapters.lora import attach_adapter, export_adapter
from hmi_runtime.adapters.weights import LayerAdapter
from hmi_runtime.models.encoder import UpperLayers
from hmi_runtime.training.fine_tuning import TaskModel, TrainingSet
from hmi_runtime.training.optim import (
    BatchSampler,
    Progress,
    make_adamw,
    optimizer_step,
    set_learning_rate,
)

STEPS = 50
BATCH_SIZE = 32
LEARNING_RATE = 3e-4
WARMUP_STEPS = 5


def distill_compressed(
    upper: UpperLayers,
    layers: Mapping[int, LayerAdapter],
    tuned: TaskModel[UpperLayers],
    rows: TrainingSet,
    *,
    seed: int = 0,
    progress: Progress = lambda step, steps, metrics: None,
) -> dict[int, LayerAdapter]:
    """Return ``layers``, compressed from ``tuned``, after a few steps towards its predictions for ``rows``.

    ``upper`` is a fresh copy of the base's upper layers and is changed. Deterministic for a seed. Nothing is
    checkpointed, since it is short.
    """
    optimizer = make_adamw([(attach_adapter(upper, layers), LEARNING_RATE)], weight_decay=0.0)
    order = BatchSampler(np.arange(len(rows.lengths)), rows.lengths, BATCH_SIZE, seed)
    tuned.eval()
    for step in range(STEPS):
        set_learning_rate(optimizer, step, STEPS, WARMUP_STEPS)
        states, mask = rows.batch(order.rows_of(step))  # (B, T, D), (B, T)
        with torch.no_grad():
            target = tuned(states, mask)
        loss = kl_divergence(tuned.head(upper(states, mask), mask), target, mask)
        optimizer_step(loss, upper, optimizer)
        progress(step + 1, STEPS, {"loss": loss.item()})
    return export_adapter(upper)


def kl_divergence(ours: Tensor, theirs: Tensor, mask: Tensor) -> Tensor:
    """Return KL(theirs || ours) of logits (B, n), or (B, T, n) where ``mask`` (B, T) is True; a mean."""
    per_row = functional.kl_div(
        ours.log_softmax(-1), theirs.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)  # (B,) or (B, T)
    return per_row[mask].mean() if per_row.ndim == 2 else per_row.mean()
