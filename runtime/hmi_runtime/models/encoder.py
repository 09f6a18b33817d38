"""The canonical encoder that checkpoints of all families are read into, and its frozen upper layers."""

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from hmi_runtime.models.architecture import (
    ACTIVATIONS,
    SUBLAYER_OUTPUT,
    Architecture,
    AttentionContext,
    EncoderConfig,
    Sublayer,
    mix_tokens,
    rotation,
)
from hmi_runtime.models.families import architecture_of

_SINUSOID_BASE = 10_000.0


class EncoderLayer(nn.Module):
    """One transformer layer: six matrices and two norms, run by its architecture."""

    def __init__(self, config: EncoderConfig, index: int) -> None:
        """Create layer number ``index`` of an encoder."""
        super().__init__()
        self.config = config
        self.index = index
        self.architecture = architecture_of(config)
        width = config.width
        (up, _), (_, inner) = config.matrix_shape("ffn_up"), config.matrix_shape("ffn_down")
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attention_output = nn.Linear(width, width)
        self.attention_norm = self._norm("attention_norm", index)
        self.ffn_up = nn.Linear(width, up)
        self.ffn_down = nn.Linear(inner, width)
        self.ffn_norm = self._norm("ffn_norm", index)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """Return the layer's output (B, T, D) for ``x`` (B, T, D)."""
        return self.architecture.layer(PlainSteps(self), x, context)

    def _norm(self, name: str, index: int) -> nn.Module:
        if not self.architecture.has_norm(name, index):
            return nn.Identity()
        return nn.LayerNorm(self.config.width, eps=self.config.norm_eps)


class PlainSteps:
    """``LayerSteps`` of a plain layer; subclasses override ``matrix``, ``norm`` or ``with_bottleneck``."""

    def __init__(self, layer: EncoderLayer) -> None:
        self.layer = layer
        self.config = layer.config

    def matrix(self, name: str, x: Tensor) -> Tensor:
        """Return one of ``MATRICES`` of ``x`` (B, T, d_in), (B, T, d_out)."""
        return getattr(self.layer, name)(x)  # type: ignore[no-any-return]

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Return ``x`` (B, T, D) after one of ``NORMS``."""
        return getattr(self.layer, name)(x)  # type: ignore[no-any-return]

    def attention_inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, each (B, T, D)."""
        return self.matrix("query", x), self.matrix("key", x), self.matrix("value", x)

    def mix(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Return the heads' attention, (B, T, D)."""
        return mix_tokens(query, key, value, bias)

    def ffn_up(self, x: Tensor) -> Tensor:
        """Return ``ffn_up`` of ``x`` (B, T, D)."""
        return self.matrix("ffn_up", x)

    def activate(self, x: Tensor) -> Tensor:
        """Return the layer's activation of ``x``."""
        return ACTIVATIONS[self.config.activation](x)

    def add_residual(self, sublayer: Sublayer, residual: Tensor, read: Tensor, inner: Tensor) -> Tensor:
        """Return ``residual`` plus the sublayer's output, (B, T, D)."""
        return residual + self.with_bottleneck(sublayer, read, self.matrix(SUBLAYER_OUTPUT[sublayer], inner))

    def with_bottleneck(self, sublayer: Sublayer, read: Tensor, output: Tensor) -> Tensor:
        """Return a sublayer's ``output`` (B, T, D) plus its bottleneck, if any; ``read`` is its input."""
        return output


class Encoder(nn.Module):
    """A whole encoder: embeddings, layers and, where the family has them, a final norm and a pooler."""

    def __init__(self, config: EncoderConfig, *, pooler: bool = False) -> None:
        super().__init__()
        self.config = config
        self.architecture = architecture_of(config)
        width = config.width
        self.word = nn.Embedding(config.vocab_size, width)
        self.position = None if config.rotary_base else nn.Embedding(config.positions, width)
        self.segment = nn.Embedding(config.segments, width) if config.segments else None
        self.embedding_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.layers = nn.ModuleList(EncoderLayer(config, index) for index in range(config.layers))
        self.final_norm = (
            nn.LayerNorm(width, eps=config.norm_eps) if self.architecture.has_final_norm else None
        )
        self.pooler = nn.Linear(width, width) if pooler else None

    def embed(self, ids: Tensor) -> Tensor:
        """Return embeddings (B, T, D) of ``ids`` (B, T) int64, all of the first segment."""
        x = self.word(ids)  # (B, T, D)
        if self.position is not None:
            x = x + self.position.weight[: ids.shape[1]]
        if self.segment is not None:
            x = x + self.segment.weight[0]
        return self.embedding_norm(x)  # type: ignore[no-any-return]

    def hidden_states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Return the embeddings and every layer's output, L + 1 tensors (B, T, D).

        ``ids`` is (B, T) int64 and ``mask`` (B, T) bool, False on padding. The final norm, where there is
        one, is part of the last.
        """
        states = [self.embed(ids)]
        contexts = self.architecture.contexts(mask, self.word.weight.dtype)
        for layer, context in zip(self.layers, contexts, strict=True):
            states.append(layer(states[-1], context))
        if self.final_norm is not None:
            states[-1] = self.final_norm(states[-1])
        return states

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the last layer's output (B, T, D)."""
        return self.hidden_states(ids, mask)[-1]

    def position_table(self) -> Tensor:
        """Return position embeddings (P, D) for modules on top of the encoder.

        The encoder's own absolute positions, or sinusoids (Vaswani et al., 2017) if it has none.
        """
        if self.position is not None:
            return self.position.weight.detach()
        cosine, sine = rotation(self.config.positions, self.config.width, _SINUSOID_BASE)  # (P, D) each
        return torch.cat((sine.chunk(2, dim=1)[0], cosine.chunk(2, dim=1)[0]), dim=1)


class LayerStack(Protocol):
    """Some layers of an encoder: what slots and kernels read of them."""

    @property
    def config(self) -> EncoderConfig:
        """Sizes of the encoder."""
        ...

    @property
    def split(self) -> int:
        """How many of the encoder's layers are not in ``layers``."""
        ...

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, ``EncoderLayer`` each."""
        ...

    @property
    def architecture(self) -> Architecture:
        """What runs the layers."""
        ...


class UpperLayers(nn.Module):
    """Layers ``split``..L of an encoder; layer i of this list is layer ``split + i`` of the base.

    One set for every tenant of a base model. Adapters change layers only; a final norm stays the base's.
    """

    def __init__(self, encoder: Encoder, split: int) -> None:
        """Copy the layers of ``encoder``, so that tuning them does not change it."""
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
        return [*states[:-1], self.apply_final_norm(states[-1])]

    def apply_final_norm(self, x: Tensor) -> Tensor:
        """Return the last layer's output ``x`` (B, T, D) after the final norm, where the base has one."""
        return x if self.final_norm is None else self.final_norm(x)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the last layer's output (B, T, D)."""
        return self.hidden_states(x, mask)[-1]
