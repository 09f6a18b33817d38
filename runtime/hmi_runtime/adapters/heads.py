"""Heads as trainable modules: pool the last hidden states, drop out, one matrix to the labels."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from hmi_api.errors import InvalidInput
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.adapters.reference import pool
from hmi_runtime.adapters.weights import Head, Pooling

_INITIAL_STD = 0.02
_DEFAULT_POOLING: dict[TaskType, Pooling] = {
    TaskType.SEQUENCE_CLASSIFICATION: "first_and_mean",
    TaskType.TOKEN_CLASSIFICATION: "token",
}


class HeadModule(nn.Module):
    """A linear head over a pooling of the last hidden states."""

    def __init__(
        self,
        width: int,
        labels: int,
        task: TaskType = TaskType.SEQUENCE_CLASSIFICATION,
        *,
        pooling: Pooling | None = None,
        dropout: float = 0.1,
        seed: int = 0,
    ) -> None:
        """``pooling`` is first_and_mean for sequence tasks and token for token tasks when absent.

        Raises ``InvalidInput`` TaskUnsupported for a task that has no head.
        """
        super().__init__()
        if task not in _DEFAULT_POOLING:
            raise InvalidInput(
                "TaskUnsupported", f"{task} is not served by encoders; choose a classification task."
            )
        self.pooling: Pooling = pooling or _DEFAULT_POOLING[task]
        self.dropout = dropout
        inner = 2 * width if self.pooling == "first_and_mean" else width
        start = torch.randn(labels, inner, generator=torch.Generator().manual_seed(seed)) * _INITIAL_STD
        self.weight = nn.Parameter(start)  # (n, inner)
        self.bias = nn.Parameter(torch.zeros(labels))  # (n,)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return logits (B, n), or (B, T, n) for a token head; ``hidden`` (B, T, D), ``mask`` (B, T) bool."""
        pooled = functional.dropout(pool(self.pooling, hidden, mask), self.dropout, self.training)
        return functional.linear(pooled, self.weight, self.bias)

    def export(self) -> Head:
        """Return the head as it is served."""
        return Head(self.pooling, self.weight.detach().clone(), self.bias.detach().clone())
