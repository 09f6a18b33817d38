"""What storing an adapter in half precision changes in its answers."""

from dataclasses import dataclass

import torch

from hmi_runtime.training.backbone import BatchFunction
from hmi_runtime.training.examples import IGNORED
from hmi_runtime.training.fine_tuning import TaskDataset

_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Changes:
    """How the answers of two adapters to the same rows differ."""

    predictions: int
    """Number of rows, or of words with a tag."""
    other_predictions: int
    """Number of those that have another best label."""
    probability: float
    """Largest difference of a probability."""


@torch.no_grad()
def changes_by_halving(stored: BatchFunction, trained: BatchFunction, rows: TaskDataset) -> Changes:
    """Compare the logits of an adapter as it is stored with those of the same adapter in float32."""
    predictions, others, probability = 0, 0, 0.0
    for start in range(0, len(rows.examples), _ROWS_AT_ONCE):
        numbers = range(start, min(start + _ROWS_AT_ONCE, len(rows.examples)))
        batch = rows.features.batch(numbers)
        scored = rows.examples.targets_of(numbers) != IGNORED  # (B,) or (B, T)
        ours, theirs = (logits_of(*batch)[scored].softmax(-1) for logits_of in (stored, trained))  # (N, n)
        predictions += len(ours)
        others += int((ours.argmax(-1) != theirs.argmax(-1)).sum())
        probability = max(probability, float((ours - theirs).abs().amax()))
    return Changes(predictions, others, probability)
