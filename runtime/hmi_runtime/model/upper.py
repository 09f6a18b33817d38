"""The frozen upper layers, one set for everybody on a base model."""

import copy

from torch import Tensor, nn

from hmi_runtime.base import Encoder, EncoderConfig


class UpperLayers(nn.Module):
    """Layers ``split``..L of an encoder; layer i of this list is layer ``split + i`` of the base.

    Adapters change layers alone: a final norm stays the base's.
    """

    def __init__(self, encoder: Encoder, split: int) -> None:
        """Copy the layers out of ``encoder``, so that tuning these leaves it alone."""
        super().__init__()
        self.config: EncoderConfig = encoder.config
        self.split = split
        self.architecture = encoder.architecture
        self.layers = nn.ModuleList(copy.deepcopy(layer) for layer in list(encoder.layers)[split:])
        self.final_norm = copy.deepcopy(encoder.final_norm)

    def hidden_states(self, x: Tensor, mask: Tensor) -> list[Tensor]:
        """Return the output (B, T, D) of every layer in turn for ``x`` (B, T, D), ``mask`` (B, T) bool.

        The final norm, where the base has one, is part of the last.
        """
        contexts = self.architecture.contexts(mask, x.dtype)[self.split :]
        states = []
        for layer, context in zip(self.layers, contexts, strict=True):
            x = layer(x, context)
            states.append(x)
        return [*states[:-1], self.close(states[-1])]

    def close(self, x: Tensor) -> Tensor:
        """Return the last layer's output ``x`` (B, T, D) after the final norm, where the base has one."""
        return x if self.final_norm is None else self.final_norm(x)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the last layer's output (B, T, D)."""
        return self.hidden_states(x, mask)[-1]
