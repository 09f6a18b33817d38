"""The kernels that can multiply the frozen matrices on this machine, to choose one by timing and accuracy.

    for kernel in available_kernels(device):
        executor = trial_executor(upper, kernel, sample)
        states = executor.run(sample, mask, [BARE] * len(sample))

``sample`` (B, T, D) float32 are unpadded inputs of the first upper layer. An executor that serves has a pool
whose ``SlotLimits.dtype`` is the kernel's ``slot_dtype``.
"""

from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch

from hmi_api.errors import InvalidInput
from hmi_runtime.adapters.quantization import supports_int8

Precision = Literal["float32", "bfloat16", "int8"]
Library = Literal["torch", "onednn"]
"""``torch``: its own products, which are MKL's or cuBLAS's; ``onednn``: on weights in oneDNN's own layout."""


@dataclass(frozen=True, order=True)
class Kernel:
    """How the frozen matrices are multiplied."""

    precision: Precision
    library: Library

    @property
    def name(self) -> str:
        """``precision/library``, for settings, logs and metrics."""
        return f"{self.precision}/{self.library}"

    @classmethod
    def parse(cls, name: str) -> Self:
        """Return the kernel with that name. Raises ``ValueError`` for another text."""
        precision, _, library = name.partition("/")
        if precision not in get_args(Precision) or library not in get_args(Library):
            raise ValueError(f"{name!r} is not a kernel such as int8/onednn")
        return cls(precision, library)  # type: ignore[arg-type]

    @property
    def slot_dtype(self) -> torch.dtype:
        """The type of an adapter's tensors in its slot."""
        return torch.float32


FLOAT32 = Kernel("float32", "torch")
"""The kernel that runs everywhere; others are compared with it."""


def available_kernels(device: torch.device) -> tuple[Kernel, ...]:
    """Return the kernels that run on ``device``, the default of each precision first."""
    kernels = [FLOAT32]
    if supports_int8(device):
        kernels.append(Kernel("int8", "onednn"))
    return tuple(kernels)


def default_kernel(precision: Precision, device: torch.device | str = "cpu") -> Kernel:
    """Return the kernel to use for ``precision`` on ``device`` without timing any.

    Raises ``InvalidInput`` PrecisionUnsupported where there is none.
    """
    for kernel in available_kernels(torch.device(device)):
        if kernel.precision == precision:
            return kernel
    raise _unsupported(precision)


def check_available(kernel: Kernel, device: torch.device) -> None:
    """Raise ``InvalidInput`` PrecisionUnsupported unless ``kernel`` runs on ``device``."""
    if kernel not in available_kernels(device):
        raise _unsupported(kernel.name)


def _unsupported(what: str) -> InvalidInput:
    return InvalidInput(
        "PrecisionUnsupported",
        f"This machine has no {what} kernels; set HMI_PRECISION to auto or float32.",
    )
