"""LoRA as a trainable module: a low-rank difference added to a frozen matrix (Hu et al., 2021)."""

import math
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from hmi_runtime.adapters.weights import LayerAdapter, LoraMatrix, export_norms
from hmi_runtime.models.architecture import MATRICES
from hmi_runtime.models.encoder import EncoderLayer, UpperLayers


class LoraLinear(nn.Module):
    """A frozen linear layer plus ``scale * b @ a``; only ``a`` and ``b`` learn."""

    def __init__(self, frozen: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        """Initialise ``a`` at random (Kaiming uniform) and ``b`` as zero; scale is alpha / rank."""
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.scale = alpha / rank
        bound = 1 / math.sqrt(frozen.in_features)
        start = torch.rand(rank, frozen.in_features, generator=generator) * 2 * bound - bound
        self.a = nn.Parameter(start.to(frozen.weight))  # (r, d_in)
        self.b = nn.Parameter(frozen.weight.new_zeros(frozen.out_features, rank))  # (d_out, r)

    @classmethod
    def from_matrix(cls, frozen: nn.Linear, matrix: LoraMatrix) -> Self:
        """Return the layer with ``matrix`` added, trainable."""
        made = cls(frozen, matrix.rank, matrix.rank, torch.Generator())
        with torch.no_grad():
            made.a.copy_(matrix.a)
            made.b.copy_(matrix.b)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., d_out) for ``x`` (..., d_in)."""
        low = functional.linear(x, self.a)  # (..., r)
        return self.frozen(x) + functional.linear(low, self.b) * self.scale  # type: ignore[no-any-return]

    def export(self) -> LoraMatrix:
        """Return the difference as it is served, its scale folded into ``b``."""
        return LoraMatrix(self.a.detach().clone(), self.b.detach() * self.scale)


def add_lora(
    upper: UpperLayers,
    rank: int,
    alpha: float | None = None,
    *,
    seed: int = 0,
) -> list[nn.Parameter]:
    """Add LoRA to all matrices of ``upper``, freeze the rest; return the trainable parameters.

    ``alpha`` is ``rank`` when absent (scale 1). The layers are changed in place: give a copy.
    """
    upper.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    added = []
    for layer in upper.layers:
        for name in MATRICES:
            module = LoraLinear(getattr(layer, name), rank, alpha or rank, generator)
            setattr(layer, name, module)
            added += [module.a, module.b]
    return added


def export_lora(upper: UpperLayers) -> dict[int, LayerAdapter]:
    """Return the LoRA that ``add_lora`` added, as it is served, by absolute layer index."""
    return {
        upper.split + index: LayerAdapter(lora=_layer_lora(layer))
        for index, layer in enumerate(upper.layers)
        if isinstance(layer, EncoderLayer)
    }


def attach_adapter(upper: UpperLayers, layers: Mapping[int, LayerAdapter]) -> list[nn.Parameter]:
    """Copy LoRA, biases and norms, by absolute layer index, into ``upper``; return what to train.

    The layers are changed in place: give a copy.
    """
    upper.requires_grad_(False)
    learning: list[nn.Parameter] = []
    for index, layer in enumerate(upper.layers, start=upper.split):
        changes = layers.get(index, LayerAdapter())
        own = {f"{name}.bias": bias for name, bias in changes.bias.items()}
        for name, (weight, bias) in changes.norms.items():
            own |= {f"{name}.weight": weight, f"{name}.bias": bias}
        for path, value in own.items():
            parameter = layer.get_parameter(path)
            with torch.no_grad():
                parameter.copy_(value)
            learning.append(parameter)
        for name, matrix in changes.lora.items():
            module = LoraLinear.from_matrix(getattr(layer, name), matrix)
            setattr(layer, name, module)
            learning += [module.a, module.b]
    for parameter in learning:
        parameter.requires_grad_(True)
    return learning


def export_adapter(upper: UpperLayers) -> dict[int, LayerAdapter]:
    """Return LoRA, biases and norms of ``upper`` as they are served, by absolute layer index."""
    return {
        upper.split + index: LayerAdapter(
            lora=_layer_lora(layer),
            bias={name: _bias(getattr(layer, name)).detach().clone() for name in MATRICES},
            norms=export_norms(layer),
        )
        for index, layer in enumerate(upper.layers)
        if isinstance(layer, EncoderLayer)
    }


def _bias(matrix: nn.Linear | LoraLinear) -> Tensor:
    return (matrix.frozen if isinstance(matrix, LoraLinear) else matrix).bias


def _layer_lora(layer: EncoderLayer) -> dict[str, LoraMatrix]:
    modules = {name: layer.get_submodule(name) for name in MATRICES}
    return {name: module.export() for name, module in modules.items() if isinstance(module, LoraLinear)}
