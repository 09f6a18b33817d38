"""Bottleneck adapters as trainable modules, parallel or sequential.

A layer with bottlenecks replaces the plain one in ``UpperLayers`` and shares its frozen parameters.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from hmi_runtime.adapters.weights import Bottleneck, BottleneckPlacement, LayerAdapter, export_norms
from hmi_runtime.models.architecture import AttentionContext, Sublayer
from hmi_runtime.models.encoder import EncoderLayer, PlainSteps, UpperLayers

PARALLEL_SCALE = 4.0
"""Scale of a parallel bottleneck (He et al., 2022); a sequential one is not scaled."""

_INITIAL_STD = 0.02


class BottleneckModule(nn.Module):
    """Down to ``width``, ReLU, up again; starts at zero, so training starts from the frozen model."""

    def __init__(self, outer: int, width: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(outer, width)
        self.up = nn.Linear(width, outer)
        with torch.no_grad():
            self.down.weight.normal_(std=_INITIAL_STD, generator=generator)
            for zero in (self.down.bias, self.up.weight, self.up.bias):
                zero.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return the change (..., D) for ``x`` (..., D)."""
        return self.up(functional.relu(self.down(x))) * self.scale  # type: ignore[no-any-return]

    def export(self, placement: BottleneckPlacement) -> Bottleneck:
        """Return the bottleneck as it is served, its scale folded into ``up``."""
        return Bottleneck(
            down=self.down.weight.detach().clone(),
            down_bias=self.down.bias.detach().clone(),
            up=self.up.weight.detach() * self.scale,
            up_bias=self.up.bias.detach() * self.scale,
            activation="relu",
            placement=placement,
        )


class BottleneckLayer(nn.Module):
    """A frozen layer with a bottleneck at each of its sublayers; the bottlenecks and the norms learn."""

    def __init__(
        self, layer: EncoderLayer, width: int, placement: BottleneckPlacement, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.layer = layer
        self.placement = placement
        outer = layer.config.width
        scale = PARALLEL_SCALE if placement == "parallel" else 1.0
        self.attention = BottleneckModule(outer, width, scale, generator)
        self.ffn = BottleneckModule(outer, width, scale, generator)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """Return the layer's output (B, T, D) for ``x`` (B, T, D)."""
        return self.layer.architecture.layer(_Steps(self), x, context)

    def export(self) -> LayerAdapter:
        """Return the bottlenecks and norms as they are served."""
        return LayerAdapter(
            norms=export_norms(self.layer),
            bottlenecks={
                "attention": self.attention.export(self.placement),
                "ffn": self.ffn.export(self.placement),
            },
        )


class _Steps(PlainSteps):
    """The layer's own steps, with the bottlenecks added to its sublayers."""

    def __init__(self, wrapped: BottleneckLayer) -> None:
        super().__init__(wrapped.layer)
        self._wrapped = wrapped

    def with_bottleneck(self, sublayer: Sublayer, read: Tensor, output: Tensor) -> Tensor:
        """Return ``output`` (B, T, D) with the sublayer's bottleneck of it, or of ``read``, added."""
        bottleneck = getattr(self._wrapped, sublayer)
        return output + bottleneck(read if self._wrapped.placement == "parallel" else output)  # type: ignore[no-any-return]


def add_bottlenecks(
    upper: UpperLayers, width: int, placement: BottleneckPlacement = "parallel", *, seed: int = 0
) -> list[nn.Parameter]:
    """Add bottlenecks to every layer of ``upper``, freeze all but them and the norms; return what to train.

    The layers are changed in place: give a copy.
    """
    upper.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    learning: list[nn.Parameter] = []
    for index, layer in enumerate(upper.layers):
        wrapped = BottleneckLayer(layer, width, placement, generator)  # type: ignore[arg-type]
        upper.layers[index] = wrapped
        for module in (wrapped.attention, wrapped.ffn, layer.attention_norm, layer.ffn_norm):
            learning += module.requires_grad_(True).parameters()  # type: ignore[union-attr]
    return learning


def export_bottlenecks(upper: UpperLayers) -> dict[int, LayerAdapter]:
    """Return the bottlenecks that ``add_bottlenecks`` added, as they are served, by absolute layer index."""
    return {
        upper.split + index: layer.export()
        for index, layer in enumerate(upper.layers)
        if isinstance(layer, BottleneckLayer)
    }
