"""Timing kernels, and comparing each with float32.

Timing takes the last layer alone, so that packing weights and running costs a fraction of the whole: all
upper layers have the same shapes. Kernels take turns, so that a moment in which the machine does something
else hits them alike, and the least time of each counts, because noise only adds.

The comparison runs all upper layers on the same sample. No adapter is loaded when a base model is, and one
tenant's adapter should not decide for a pool, so predictions are those of stand-ins: linear heads of four
labels with seeded random weights over the last states, relative to their mean. Without the mean all tokens
would get one label, since BERT's states have most of their length in common. Such a head separates tokens by
what distinguishes them, as a trained one does, but more of its decisions are close.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hmi_runtime.adapters.executor import UpperExecutor, trial_executor
from hmi_runtime.adapters.kernels import Kernel
from hmi_runtime.adapters.slot_pool import BARE
from hmi_runtime.models.encoder import Encoder, UpperLayers

Trial = Callable[[UpperLayers, Kernel, Tensor], UpperExecutor]
"""Returns an executor for rows without an adapter; int8 is fitted to the tensor (B, T, D)."""

TIMED_ROWS = 4
"""Rows of the sample that are timed: on one core, more would take longer than the choice may."""
TIMING_SECONDS = 0.5
"""After this time no further round begins, except that there are at least ``ROUNDS[0]``."""
ROUNDS = (3, 7)
"""Fewest and most rounds, after one that is not counted: it makes buffers and wakes threads."""
FAR_SLOWER = 2.0
"""After the fewest rounds, kernels that take more than this times the fastest's time are timed no further:
they take most of the time, and more rounds would not make them the fastest."""

MIN_COSINE = 0.995
MIN_AGREEMENT = 0.93
"""The bound: what random noise of a tenth of each state's length does to MiniLM's last states (cosine 0.995,
agreement 0.934). int8 on half of its layers is within it; the error grows with the number of layers."""
_HEADS, _LABELS = 8, 4


@dataclass(frozen=True)
class Accuracy:
    """How near a kernel is to float32 on a sample."""

    cosine: float
    """Mean cosine of the last hidden states of all tokens."""
    agreement: float
    """Share of the predictions of stand-in heads that are the same, 0 to 1."""

    @property
    def problem(self) -> str:
        """Why a kernel may not be taken; empty if it may."""
        if not self.cosine >= MIN_COSINE:  # NaN included
            return f"cosine {self.cosine:.4f} is below {MIN_COSINE}"
        if not self.agreement >= MIN_AGREEMENT:
            return f"agreement {self.agreement:.3f} is below {MIN_AGREEMENT}"
        return ""


def time_kernels(
    kernels: Sequence[Kernel],
    encoder: Encoder,
    hidden: Tensor,
    clock: Callable[[], float] = time.perf_counter,
    trial: Trial = trial_executor,
) -> list[float]:
    """Return the least seconds of each kernel for the last layer on the first of ``hidden`` (B, T, D).

    A CPU uses one core, as under load, when each batch has one core.
    """
    last = UpperLayers(encoder, encoder.config.layers - 1)
    executors = [trial(last, kernel, hidden) for kernel in kernels]
    hidden = hidden[:TIMED_ROWS]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _least_seconds(executors, hidden, clock)
    finally:
        torch.set_num_threads(threads)


def _least_seconds(
    executors: Sequence[UpperExecutor], hidden: Tensor, clock: Callable[[], float]
) -> list[float]:
    for executor in executors:
        _run_seconds(executor, hidden, clock)  # not counted
    seconds = [float("inf")] * len(executors)
    until = clock() + TIMING_SECONDS
    fewest, most = ROUNDS
    timed = list(range(len(executors)))
    for round_ in range(most):
        if round_ >= fewest:
            if clock() >= until:
                break
            timed = [number for number in timed if seconds[number] <= FAR_SLOWER * min(seconds)]
        for number in timed:
            seconds[number] = min(seconds[number], _run_seconds(executors[number], hidden, clock))
    return seconds


def reference_states(upper: UpperLayers, hidden: Tensor) -> Tensor:
    """Return the last hidden states (B, T, D) of the plain layers in float32, what kernels must match."""
    with torch.inference_mode():
        return upper(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device))  # type: ignore[no-any-return]


def compare(executor: UpperExecutor, hidden: Tensor, reference: Tensor) -> Accuracy:
    """Compare the last hidden states of bare rows with ``reference`` (B, T, D)."""
    found = _run(executor, hidden).float()
    cosine = functional.cosine_similarity(found, reference, dim=-1).mean()
    agreement = (_predict(found, reference) == _predict(reference, reference)).float().mean()
    return Accuracy(float(cosine), float(agreement))


def _predict(states: Tensor, reference: Tensor) -> Tensor:
    """Return the label (B, T, heads) of each token by each stand-in head."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(states.shape[-1], _HEADS * _LABELS, generator=generator).to(states.device)
    logits = (states - reference.mean(dim=(0, 1))) @ weight  # (B, T, heads * labels)
    return logits.view(*states.shape[:2], _HEADS, _LABELS).argmax(dim=-1)


def _run(executor: UpperExecutor, hidden: Tensor) -> Tensor:
    mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    return executor.run(hidden, mask, [BARE] * len(hidden))


def _run_seconds(executor: UpperExecutor, hidden: Tensor, clock: Callable[[], float]) -> float:
    started = clock()
    _run(executor, hidden)
    if hidden.device.type == "cuda":
        torch.cuda.synchronize(hidden.device)
    return clock() - started
