"""The precision of training's matrix products: float32, or bfloat16 where the CPU has instructions for it.

In bfloat16, the matrix products of a training step and of its gradients read bfloat16 and add in float32
(Micikevicius et al., "Mixed precision training", 2018; bfloat16 has the range of float32, so losses are not
scaled). Weights, residual sums, norms, attention over queries, keys and values, heads, losses and the
optimiser's state stay float32.

So does all that is not such a step: initial gates, features, soft labels, the choice of the best epoch, and
metrics, which are those of what is served. Compression is in float32 with the distillation after it, which
learns differences that are smaller than bfloat16's rounding.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hmi_api.internal.trainer import TrainingPrecision
from hmi_api.resources.task_adapter import TaskType

PRECISION_METRIC = "precision_bits"
"""Metric of a run: 16 where its training steps used bfloat16, else 32."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepPrecision:
    """The type of a training step's matrix products."""

    dtype: torch.dtype
    forced: bool = False
    """Whether the operator named it; if not, the CPU or a checkpoint decides."""

    @property
    def name(self) -> str:
        """``float32`` or ``bfloat16``."""
        return "bfloat16" if self.dtype is torch.bfloat16 else "float32"

    @property
    def bits(self) -> float:
        """The value of ``PRECISION_METRIC``."""
        return 16.0 if self.dtype is torch.bfloat16 else 32.0

    @contextmanager
    def products(self) -> Iterator[None]:
        """Enter a context in which matrix products have this precision.

        Use one context for a forward pass with gradients and another for one without: autocast keeps the
        weights that it converted until its context ends, with or without their gradient.
        """
        if self.dtype is torch.float32:
            yield
        else:
            with torch.autocast("cpu", dtype=self.dtype), _Float32Attention():
                yield

    def for_task(self, task: TaskType) -> "StepPrecision":
        """Return the precision for an adapter of ``task``: float32 for tokens, unless another one is forced.

        On the one entity task that was measured in both, bfloat16 had a lower F1 (docs/benchmarks.md).
        """
        if self.forced or task is not TaskType.TOKEN_CLASSIFICATION or self == FLOAT32:
            return self
        _LOG.info("training steps of token classification multiply in float32")
        return FLOAT32

    def resumed(self, recorded: str) -> "StepPrecision":
        """Return the precision in which to continue a checkpoint that was made in ``recorded``.

        A forced precision stays. Otherwise a checkpoint continues in its own precision where this CPU
        is fast in it, else in float32. A change is logged: the result then differs from that of a run without
        an interruption.
        """
        if recorded == self.name:
            return self
        if self.forced or recorded != FLOAT32.name:
            _LOG.warning(
                "the checkpoint was made in %s, training continues in %s: the result differs from that of a "
                "run without an interruption",
                recorded,
                self.name,
            )
            return self
        _LOG.info("the checkpoint was made in %s, training continues in it", recorded)
        return FLOAT32


class _Float32Attention(TorchFunctionMode):
    """Computes attention in float32 although autocast would choose bfloat16.

    The gradient of torch's fused attention took ten times as long in bfloat16 as in float32, on AVX512-BF16.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(*(tensor.float() for tensor in args), **(kwargs or {}))


FLOAT32 = StepPrecision(torch.float32)
BFLOAT16 = StepPrecision(torch.bfloat16)


def multiplies_bfloat16() -> bool:
    """Return whether the CPU has instructions for products of bfloat16 that torch and oneDNN use.

    These are AVX512-BF16, which CPUs with AMX have too. On all of them products are faster than in float32,
    so nothing is timed: the answer, and with it the result of a training, is the same at every start.
    Without the instructions oneDNN emulates bfloat16 on AVX-512, slower than float32.
    """
    return (
        bool(torch.cpu.get_capabilities().get("avx512_bf16"))
        and torch.backends.cpu.get_cpu_capability() == "AVX512"  # ATEN_CPU_CAPABILITY can forbid it
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # and so can ONEDNN_MAX_CPU_ISA
    )


def step_precision(setting: TrainingPrecision) -> StepPrecision:
    """Return the precision that ``setting`` names, or this CPU's for ``auto``; log it."""
    fast = multiplies_bfloat16()
    if setting == "auto":
        chosen = BFLOAT16 if fast else FLOAT32
        _LOG.info("training steps multiply in %s, as this CPU does it fastest", chosen.name)
        return chosen
    chosen = StepPrecision((BFLOAT16 if setting == "bfloat16" else FLOAT32).dtype, forced=True)
    _LOG.info("training steps multiply in %s, as HMI_TRAINING_PRECISION says", chosen.name)
    if chosen.dtype is torch.bfloat16 and not fast:
        _LOG.warning("this CPU has no AVX512-BF16: training in bfloat16 is slower than in float32")
    return chosen
