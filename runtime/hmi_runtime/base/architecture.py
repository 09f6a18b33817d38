"""The canonical encoder: one shape that every BERT-family checkpoint is read into.

A family module (``families``) maps a checkpoint's tensor names to these, and says how its positions
count; nothing above this package knows which family it serves. Layers are post-norm: each norm stands
after its residual sum, as in BERT (Devlin et al., 2019).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

MATRICES = ("query", "key", "value", "attention_output", "ffn_up", "ffn_down")
"""The six matrices of a layer, by the names that layers, adapters and artifacts share."""

NORMS = ("attention_norm", "ffn_norm")
"""The two LayerNorms of a layer."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


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

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    def matrix_shape(self, matrix: str) -> tuple[int, int]:
        """Return (out, in) of one of ``MATRICES``."""
        return {
            "ffn_up": (self.ffn_width, self.width),
            "ffn_down": (self.width, self.ffn_width),
        }.get(matrix, (self.width, self.width))


def attention_bias(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the additive bias (B, 1, 1, T) that hides positions where ``mask`` (B, T) bool is False."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)  # (B, T)
    return bias.masked_fill_(~mask, torch.finfo(dtype).min)[:, None, None, :]  # (B, 1, 1, T)


class EncoderLayer(nn.Module):
    """One post-norm transformer layer."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.activation = config.activation
        width, ffn_width = config.width, config.ffn_width
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attention_output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.ffn_up = nn.Linear(width, ffn_width)
        self.ffn_down = nn.Linear(ffn_width, width)
        self.ffn_norm = nn.LayerNorm(width, eps=config.norm_eps)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the layer's output (B, T, D) for ``x`` (B, T, D) under an additive ``bias``."""
        x = self.attention_norm(x + self.attention_output(self.attend(x, bias)))
        return self.ffn_norm(x + self.ffn_down(activate(self.activation, self.ffn_up(x))))  # type: ignore[no-any-return]

    def attend(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return the heads' outputs side by side, (B, T, D), before the output matrix."""
        query, key, value = (split_heads(part(x), self.heads) for part in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)  # (B, H, T, D/H)
        return merge_heads(mixed)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, H*S) -> (B, H, T, S)."""
    batch, length, width = x.shape
    return x.view(batch, length, heads, width // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, T, S) -> (B, T, H*S)."""
    batch, heads, length, width = x.shape
    return x.transpose(1, 2).reshape(batch, length, heads * width)


def activate(name: str, x: Tensor) -> Tensor:
    """Apply the activation of that name; ``KeyError`` for one that is not known."""
    return _ACTIVATIONS[name](x)


class Encoder(nn.Module):
    """A whole encoder: embeddings, layers and, where the family has one, a pooler."""

    def __init__(self, config: EncoderConfig, *, pooler: bool = False) -> None:
        super().__init__()
        self.config = config
        self.word = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Embedding(config.positions, config.width)
        self.segment = nn.Embedding(config.segments, config.width) if config.segments else None
        self.embedding_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.pooler = nn.Linear(config.width, config.width) if pooler else None

    def embed(self, ids: Tensor) -> Tensor:
        """Return embeddings (B, T, D) of ``ids`` (B, T) int64, all of the first segment."""
        x = self.word(ids) + self.position.weight[: ids.shape[1]]  # (B, T, D)
        if self.segment is not None:
            x = x + self.segment.weight[0]
        return self.embedding_norm(x)  # type: ignore[no-any-return]

    def hidden_states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Return the embeddings and every layer's output, L + 1 tensors (B, T, D).

        ``ids`` is (B, T) int64 and ``mask`` (B, T) bool, False on padding.
        """
        bias = attention_bias(mask, self.word.weight.dtype)
        states = [self.embed(ids)]
        for layer in self.layers:
            states.append(layer(states[-1], bias))
        return states

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the last layer's output (B, T, D)."""
        return self.hidden_states(ids, mask)[-1]
