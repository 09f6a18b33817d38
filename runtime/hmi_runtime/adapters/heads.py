"""Heads: pooling and classifier on top of the upper layers, for training, row by row, and batched.

For the batched run, weights lie in the slot pool over [first, mean] side by side, with zeros for the half
that a head does not read, and padded with zeros to ``max_labels``. A batch is multiplied up to its own
largest number of labels, and each row's result is cut to its own. ``run_head`` is the reference for
``run_heads``; ``tests/runtime/adapters/test_batched_heads.py`` compares the two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hmi_api.errors import InvalidInput
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.adapters.slot_pool import BARE, SlotPool
from hmi_runtime.adapters.weights import Head, Pooling

_INITIAL_STD = 0.02
_DEFAULT_POOLING: dict[TaskType, Pooling] = {
    TaskType.SEQUENCE_CLASSIFICATION: "first_and_mean",
    TaskType.TOKEN_CLASSIFICATION: "token",
}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": functional.relu,
    "gelu": functional.gelu,
}


def pool_states(pooling: str, hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the input of a head from ``hidden`` (B, T, D): (B, D), (B, 2D), or (B, T, D) for ``token``.

    ``mask`` (B, T) bool is False on padding; the mean is over True positions.
    """
    if pooling == "token":
        return hidden
    first = hidden[:, 0]  # (B, D)
    if pooling == "first":
        return first
    kept = mask.to(hidden.dtype)[:, :, None]  # (B, T, 1)
    mean = (hidden * kept).sum(1) / kept.sum(1).clamp_min(1)  # (B, D)
    return mean if pooling == "mean" else torch.cat((first, mean), dim=-1)


def run_head(head: Head, hidden: Tensor, mask: Tensor) -> Tensor:
    """Return one row's logits: (n,), or (T, n) for a token head. ``hidden`` is (T, D), ``mask`` (T,) bool."""
    x = pool_states(head.pooling, hidden[None], mask[None])[0]
    if head.dense is not None:
        dense = functional.linear(x, head.dense.weight, head.dense.bias)
        x = _ACTIVATIONS[head.dense.activation](dense)
    return functional.linear(x, head.weight, head.bias)


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
        pooled = functional.dropout(pool_states(self.pooling, hidden, mask), self.dropout, self.training)
        return functional.linear(pooled, self.weight, self.bias)

    def export(self) -> Head:
        """Return the head as it is served."""
        return Head(self.pooling, self.weight.detach().clone(), self.bias.detach().clone())


def run_heads(pool: SlotPool, hidden: Tensor, mask: Tensor, slots: Sequence[int]) -> list[Tensor]:
    """Return each row's logits: (n,), or (T, n) for a token head; n is that row's number of labels.

    Arguments and errors are those of ``batch_logits``.
    """
    logits: dict[int, Tensor] = {}
    for group in batch_logits(pool, hidden, mask, slots):
        logits.update(zip(group.rows, group.logits, strict=True))
    return [logits[row][..., : pool.traits[slot].labels] for row, slot in enumerate(slots)]


@dataclass(frozen=True)
class HeadLogits:
    """Logits of n rows whose heads are of one kind, with as many labels as the largest head has."""

    rows: Sequence[int]
    logits: Tensor  # (n, most labels), or (n, T, most labels) for token heads


@torch.inference_mode()
def batch_logits(pool: SlotPool, hidden: Tensor, mask: Tensor, slots: Sequence[int]) -> list[HeadLogits]:
    """Return the logits of all rows, those of sequence heads and those of token heads.

    ``hidden`` (B, T, D) float32 are the last hidden states, ``mask`` (B, T) bool is False on padding.
    Raises ``InvalidInput`` AdapterMissing for a row without an adapter: the bare layers have no head.
    """
    if BARE in slots:
        raise InvalidInput("AdapterMissing", "A row names no adapter, so it has no head; name one.")
    found = []
    by_token = [pool.traits[slot].pooling == "token" for slot in slots]
    for per_token in sorted(set(by_token)):
        rows = [row for row, is_token in enumerate(by_token) if is_token is per_token]
        inputs, kept = hidden, mask
        if len(rows) < len(slots):
            index = torch.tensor(rows, device=hidden.device)
            inputs, kept = hidden[index], mask[index]  # (n, T, D), (n, T)
        if not per_token:
            inputs = _first_and_mean(inputs, kept)  # (n, 1, 2D)
        scores = _scores(pool, inputs, [slots[row] for row in rows])  # (n, T or 1, most labels)
        found.append(HeadLogits(rows, scores if per_token else scores[:, 0]))
    return found


def _first_and_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the same as ``pool_states`` (n, 1, 2D), without a copy of the states (n, T, D)."""
    shares = mask.float()  # (n, T)
    shares /= shares.sum(1, keepdim=True).clamp_min_(1)
    return torch.cat((hidden[:, :1], torch.bmm(shares[:, None], hidden)), dim=-1)


def _scores(pool: SlotPool, inputs: Tensor, slots: Sequence[int]) -> Tensor:
    """Return (n, T, most labels) for ``inputs`` (n, T, D or 2D), row i by the head of ``slots[i]``."""
    inputs = _dense(pool, inputs, slots)
    places = torch.tensor(slots, device=inputs.device)
    labels = max(pool.traits[slot].labels for slot in slots)
    weight = pool.tensor("head.weight")[0, :, :labels, : inputs.shape[-1]].index_select(0, places)
    bias = pool.tensor("head.bias")[0, :, :labels].index_select(0, places)
    return torch.baddbmm(bias[:, None], inputs, weight.transpose(1, 2))


def _dense(pool: SlotPool, inputs: Tensor, slots: Sequence[int]) -> Tensor:
    """Return ``inputs`` after the dense layer of heads that have one; its output takes the first D values."""
    width = pool.config.width
    kinds = [(pool.traits[slot].dense_activation, pool.traits[slot].pooling) for slot in slots]
    for activation, pooling in sorted({(a, p) for a, p in kinds if a is not None}):
        rows = [row for row, kind in enumerate(kinds) if kind == (activation, pooling)]
        index = torch.tensor(rows, device=inputs.device)
        places = torch.tensor([slots[row] for row in rows], device=inputs.device)
        start = width if pooling == "mean" else 0
        read = inputs[index, :, start : start + width]  # (n, T, D)
        weight = pool.tensor("head.dense.weight")[0].index_select(0, places).float()  # (n, D, D)
        bias = pool.tensor("head.dense.bias")[0].index_select(0, places)  # (n, D)
        before = torch.baddbmm(bias[:, None], read, weight.transpose(1, 2))  # (n, T, D)
        before.masked_fill_(~before.isfinite(), torch.nan)  # tanh and ReLU would hide infinities
        dense = _ACTIVATIONS[activation](before)
        inputs = inputs.clone()  # it may be a view of the caller's hidden states
        inputs[index, :, :width] = dense
    return inputs
