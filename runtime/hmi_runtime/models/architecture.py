"""The interface between encoder architectures and the code that runs their layers.

An ``Architecture`` defines how data flows through a layer, in terms of ``LayerSteps``: where norms are
applied, what attention can see, how positions enter. There are several implementations of the steps: the
plain layer, the reference with an adapter, training with bottlenecks, and the batched executor. Each
architecture is a module of this package (``bert``, ``modernbert``) that also lists its checkpoint families
(``Family``); code outside this package does not depend on which one runs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

MATRICES = ("query", "key", "value", "attention_output", "ffn_up", "ffn_down")
"""The six matrices of a layer."""
NORMS = ("attention_norm", "ffn_norm")
"""The two LayerNorms of a layer, one to each of its sublayers."""
Sublayer = Literal["attention", "ffn"]
"""A layer's two sublayers; each adds its output to the residual stream."""
SUBLAYERS: tuple[Sublayer, ...] = ("attention", "ffn")
SUBLAYER_OUTPUT: dict[Sublayer, str] = {"attention": "attention_output", "ffn": "ffn_down"}
"""The last matrix of each sublayer."""


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}
RawConfig = Mapping[str, Any]
"""A checkpoint's config.json."""


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder. ``positions`` counts the usable ones, after a family's offset."""

    family: str
    layers: int
    width: int
    heads: int
    ffn_width: int
    vocab_size: int
    positions: int
    segments: int
    norm_eps: float
    activation: str
    pad_id: int
    cls_id: int
    sep_id: int
    gated: bool = False
    """Whether ``ffn_up`` has two halves: the activated first is multiplied by the second."""
    rotary_base: float = 0.0
    """Base of the rotary angles in layers with global attention; 0 for absolute positions."""
    local_rotary_base: float = 0.0
    """Base of the rotary angles in layers with local attention."""
    local_reach: int = 0
    """How many tokens to either side a layer with local attention sees."""
    global_every: int = 1
    """Layer i has global attention where this divides i, else local attention."""

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    def matrix_shape(self, matrix: str) -> tuple[int, int]:
        """Return (out, in) of one of ``MATRICES``."""
        return {
            "ffn_up": ((2 if self.gated else 1) * self.ffn_width, self.width),
            "ffn_down": (self.width, self.ffn_width),
        }.get(matrix, (self.width, self.width))


@dataclass(frozen=True)
class AttentionContext:
    """Inputs of a layer's attention that depend on the batch's shape and mask."""

    bias: Tensor | None
    """(B, 1, 1, T) or (B, 1, T, T), added to the scores; None when every token sees all others."""
    rotation: tuple[Tensor, Tensor] | None = None
    """Cosine and sine (T, D/H) by which queries and keys are rotated; None for absolute positions."""


class LayerSteps(Protocol):
    """The arithmetic of one layer's parameters. Results may be in buffers that the next call overwrites."""

    @property
    def config(self) -> EncoderConfig:
        """Sizes of the encoder."""
        ...

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Return ``x`` (B, T, D) after one of ``NORMS``."""
        ...

    def attention_inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, each (B, T, D), of ``x`` (B, T, D)."""
        ...

    def mix(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Return softmax(query @ key.T / sqrt(D/H) + bias) @ value of every head, side by side, (B, T, D).

        ``query``, ``key`` and ``value`` are (B, H, T, D/H), ``bias`` as in ``AttentionContext``.
        """
        ...

    def ffn_up(self, x: Tensor) -> Tensor:
        """Return ``ffn_up`` of ``x`` (B, T, D), (B, T, F), or (B, T, 2F) where the encoder is gated."""
        ...

    def activate(self, x: Tensor) -> Tensor:
        """Return the layer's activation of ``x``, which may be overwritten."""
        ...

    def add_residual(self, sublayer: Sublayer, residual: Tensor, read: Tensor, inner: Tensor) -> Tensor:
        """Return ``residual`` plus the sublayer's output, (B, T, D), valid until the sublayer's next call.

        ``inner`` (B, T, d_in) is the input of its last matrix, ``read`` (B, T, D) the sublayer's own input.
        """
        ...


class Architecture(ABC):
    """One kind of encoder, for given sizes."""

    has_final_norm: ClassVar[bool]
    """Whether a norm follows the last layer; required where layers do not end in a norm."""

    def __init__(self, config: EncoderConfig) -> None:
        self.config = config

    def has_norm(self, name: str, layer: int) -> bool:
        """Whether layer number ``layer`` has that one of ``NORMS``; upper layers have both."""
        return True

    @abstractmethod
    def contexts(
        self, mask: Tensor, dtype: torch.dtype = torch.float32, *, unpadded: bool = False
    ) -> Sequence[AttentionContext]:
        """Return every layer's context for a batch, by the layer's number in the whole encoder.

        ``mask`` (B, T) bool is False on padding; ``unpadded`` promises that it is True everywhere.
        """

    @abstractmethod
    def layer(self, steps: LayerSteps, x: Tensor, context: AttentionContext) -> Tensor:
        """Return a layer's output (B, T, D) for ``x`` (B, T, D), which is not changed."""


def attend(steps: LayerSteps, x: Tensor, context: AttentionContext) -> Tensor:
    """Return the heads' outputs side by side, (B, T, D), before the output matrix."""
    heads = steps.config.heads
    query, key, value = (split_heads(part, heads) for part in steps.attention_inputs(x))  # (B, H, T, D/H)
    if context.rotation is not None:
        query, key = rotate(query, *context.rotation), rotate(key, *context.rotation)
    return steps.mix(query, key, value, context.bias)


def mix_tokens(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Return attention (B, T, D) by torch's kernel; see ``LayerSteps.mix``."""
    return merge_heads(functional.scaled_dot_product_attention(query, key, value, attn_mask=bias))


def attention_bias(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the additive bias (B, 1, 1, T) that hides positions where ``mask`` (B, T) bool is False."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)  # (B, T)
    return bias.masked_fill_(~mask, torch.finfo(dtype).min)[:, None, None, :]  # (B, 1, 1, T)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, H*S) -> (B, H, T, S)."""
    batch, length, width = x.shape
    return x.view(batch, length, heads, width // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, T, S) -> (B, T, H*S)."""
    batch, heads, length, width = x.shape
    return x.transpose(1, 2).reshape(batch, length, heads * width)


def rotation(
    length: int, width: int, base: float, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return cosine and sine (T, S) of the angles of rotary positions (RoFormer, Su et al., 2021).

    Dimensions i and i + S/2 of ``width`` S rotate together, by ``position * base ** (-2i / S)``.
    """
    step = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width  # (S/2,)
    angle = torch.outer(torch.arange(length, device=device).float(), base**-step)  # (T, S/2)
    angle = torch.cat((angle, angle), dim=1)  # (T, S)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return ``x`` (B, H, T, S) rotated by the angles of its positions, given as (T, S) each."""
    left, right = x.chunk(2, dim=-1)  # (B, H, T, S/2)
    return x * cosine.to(x.dtype) + torch.cat((-right, left), dim=-1) * sine.to(x.dtype)


@dataclass(frozen=True)
class Family:
    """How a family's checkpoints name their tensors and sizes."""

    name: str
    architecture: Callable[[EncoderConfig], Architecture]
    prefix: str
    """Prefix of every name in a task model of transformers, such as ``bert.``."""
    layer: str
    """Path of layer ``{}`` under the prefix."""
    modules: Mapping[str, str]
    """Canonical module name -> path under a layer."""
    embeddings: Mapping[str, str]
    """Canonical module outside the layers -> path under the prefix."""
    keys: Mapping[str, str]
    """Canonical size -> key in config.json."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Path under a layer -> the modules whose rows it contains, one block after another."""
    further_sizes: Callable[[RawConfig], dict[str, Any]] = lambda raw: {}
    """Sizes that only this family has. Raises ``InvalidInput`` BaseModelUnsupported."""
    norm_eps: float = 1e-12
    """Default for a config.json without it."""
    may_lack_biases: bool = False
    """Whether biases may be missing from its files; they are then zero."""
    counts_from_pad: bool = False
    """Whether the first token's position is pad + 1, so that earlier rows are never used."""
    pooler: str | None = None

    def module_path(self, layer: int, module: str) -> str:
        """Return the path of a layer's module in a transformers task model, prefix included."""
        return f"{self.prefix}{self.layer.format(layer)}.{self.modules[module]}"
