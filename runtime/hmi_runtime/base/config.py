"""What an encoder is made of: its sizes, and the names that layers, adapters and artifacts share."""

from dataclasses import dataclass
from typing import Literal

MATRICES = ("query", "key", "value", "attention_output", "ffn_up", "ffn_down")
"""The six matrices of a layer."""

NORMS = ("attention_norm", "ffn_norm")
"""The two LayerNorms of a layer, one to each of its sublayers."""

Sublayer = Literal["attention", "ffn"]
"""A layer's two sublayers; each adds what it finds to the residual stream."""

SUBLAYERS: tuple[Sublayer, ...] = ("attention", "ffn")

SUBLAYER_OUTPUT: dict[Sublayer, str] = {"attention": "attention_output", "ffn": "ffn_down"}
"""The matrix that each sublayer ends with."""


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
    """Whether ``ffn_up`` gives two halves, the second of which the activated first is multiplied by."""
    rotary_base: float = 0.0
    """Base of the rotary angles in layers that see every token; 0 where positions are absolute."""
    local_rotary_base: float = 0.0
    """The same in layers that see near tokens alone."""
    local_reach: int = 0
    """How many tokens to either side such a layer sees."""
    global_every: int = 1
    """Layer i sees every token where this divides i, and near tokens alone elsewhere."""

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
