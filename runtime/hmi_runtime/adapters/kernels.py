"""The kernels that can multiply the frozen matrices on this machine, to choose one by timing and accuracy.

    for kernel in available_kernels(device):
        executor = trial_executor(upper, kernel, sample)
        states = executor.run(sample, mask, [BARE] * len(sample))

``sample`` (B, T, D) float32 are unpadded inputs of the first upper layer. An executor that serves has a pool
whose ``SlotLimits.dtype`` is the kernel's ``slot_dtype``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from hmi_api.errors import InvalidInput
from hmi_runtime.adapters.frozen import FrozenLayer, OneDnnLayer, Precision, TorchLayer
from hmi_runtime.adapters.native import library
from hmi_runtime.adapters.quantization import quantise_layers, supports_int8
from hmi_runtime.models.bert import PostNorm
from hmi_runtime.models.encoder import EncoderLayer, LayerStack

Library = Literal["torch", "onednn", "native"]
"""``torch``: its own products, which are MKL's or cuBLAS's; ``onednn``: on weights in oneDNN's own layout;
``native``: this project's, in C++."""


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
    def dtype(self) -> torch.dtype:
        """The type of activations between products: bfloat16 where the precision and the CPU allow it."""
        if self.precision == "bfloat16" or (self.precision == "int8" and has_bfloat16()):
            return torch.bfloat16
        return torch.float32

    @property
    def slot_dtype(self) -> torch.dtype:
        """The type of an adapter's matrices in its slot: that of activations, so that none is converted."""
        return self.dtype


FLOAT32 = Kernel("float32", "torch")
"""The kernel that runs everywhere; others are compared with it."""


def has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 in one instruction, not by way of float32.

    ``ATEN_CPU_CAPABILITY`` takes part, so that an older CPU can be imitated.
    """
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return wide and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def has_native() -> bool:
    """Return whether this CPU runs the C++ kernels, and whether they were compiled."""
    return _fits_native() and library.problem() is None


def missing_native() -> str | None:
    """Return why the C++ kernels are missing and how to add them, if this CPU could run them; else None."""
    found = library.problem() if _fits_native() else None
    if found is None:
        return None
    return (
        f"{found} Others serve, which take up to twice as long. Install g++ 12 or clang 19, then install HMI "
        "again, or run python runtime/build_kernels.py in its folder."
    )


def _fits_native() -> bool:
    return has_bfloat16() and bool(torch.cpu.get_capabilities().get("avx512_vnni", False))


def runs_model(kernel: Kernel, upper: LayerStack) -> bool:
    """Return whether ``kernel`` runs these layers; all but the C++ kernels run every model.

    These compute layers with global attention and norms after residual sums, of sizes that fill vectors.
    """
    config = upper.config
    return kernel.library != "native" or (
        isinstance(upper.architecture, PostNorm)
        and not config.gated
        and config.width % 64 == 0
        and config.ffn_width % 64 == 0
        and config.head_width % 16 == 0
    )


def available_kernels(device: torch.device, upper: LayerStack | None = None) -> tuple[Kernel, ...]:
    """Return the kernels that run ``upper`` on ``device``, the default of each precision first.

    Without ``upper``, those that run there at all.
    """
    found = _device_kernels(device)
    return found if upper is None else tuple(one for one in found if runs_model(one, upper))


def _device_kernels(device: torch.device) -> tuple[Kernel, ...]:
    if device.type != "cpu":
        return FLOAT32, Kernel("bfloat16", "torch")
    precisions: list[Precision] = ["float32"]
    if has_bfloat16():
        precisions.append("bfloat16")
    kernels = [Kernel(one, "native") for one in (*precisions, "int8")] if has_native() else []
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        kernels += [Kernel(one, "onednn") for one in precisions]
    if supports_int8(device):
        kernels.append(Kernel("int8", "onednn"))
    kernels.append(FLOAT32)
    return tuple(kernels)


@torch.no_grad()
def freeze_layers(
    layers: Sequence[EncoderLayer], kernel: Kernel, sample: Tensor | None = None
) -> Sequence[FrozenLayer]:
    """Return the products of ``layers`` by ``kernel``, of torch or oneDNN.

    ``sample`` (B, T, D), unpadded inputs of the first, is for int8 (see ``quantise_layers``).
    """
    if kernel.precision == "int8":
        return quantise_layers(layers, sample, kernel.dtype)
    kind = OneDnnLayer if kernel.library == "onednn" else TorchLayer
    return [kind(layer, kernel.dtype) for layer in layers]


def default_kernel(
    precision: Precision, device: torch.device | str = "cpu", upper: LayerStack | None = None
) -> Kernel:
    """Return the kernel to use for ``precision`` and ``upper`` on ``device`` without timing any.

    Raises ``InvalidInput`` PrecisionUnsupported where there is none.
    """
    for kernel in available_kernels(torch.device(device), upper):
        if kernel.precision == precision:
            return kernel
    raise _unsupported(precision)


def check_available(kernel: Kernel, device: torch.device, upper: LayerStack) -> None:
    """Raise ``InvalidInput`` PrecisionUnsupported unless ``kernel`` runs ``upper`` on ``device``."""
    if kernel not in available_kernels(device, upper):
        raise _unsupported(kernel.name)


def _unsupported(what: str) -> InvalidInput:
    return InvalidInput(
        "PrecisionUnsupported",
        f"This machine has no {what} kernels; set HMI_PRECISION to auto or float32.",
    )
