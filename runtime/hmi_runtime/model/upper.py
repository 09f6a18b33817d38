"""The frozen upper layers, one set for everybody on a base model."""

import copy

from torch import Tensor, nn

from hmi_runtime.base.architecture import Encoder, EncoderConfig, attention_bias


class UpperLayers(nn.Module):
    """Layers ``split``..L of an encoder; layer i of this list is layer ``split + i`` of the base."""

    def __init__(self, encoder: Encoder, split: int) -> None:
        """Copy the layers out of ``encoder``, so that tuning these leaves it alone."""
        super().__init__()
        self.config: EncoderConfig = encoder.config
        self.split = split
        self.layers = nn.ModuleList(copy.deepcopy(layer) for layer in list(encoder.layers)[split:])

    def hidden_states(self, x: Tensor, mask: Tensor) -> list[Tensor]:
        """Return the output (B, T, D) of every layer in turn for ``x`` (B, T, D), ``mask`` (B, T) bool."""
        bias = attention_bias(mask, x.dtype)
        states = []
        for layer in self.layers:
            x = layer(x, bias)
            states.append(x)
        return states

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the last layer's output (B, T, D)."""
        return self.hidden_states(x, mask)[-1]
