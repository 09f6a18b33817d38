"""The bridge: one narrow attention after the lookup, which lets distant tokens tell one another again
what the cut to windows took from them. It costs about a twelfth of a layer.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from hmi_runtime.base import Encoder
from hmi_runtime.base.architecture import split_heads

_POSITION_SPREAD = 0.02


class Bridge(nn.Module):
    """Residual multi-head attention of ``heads`` heads of ``head_size`` dimensions over width D.

    ``x + out(attention(qkv(norm(x) + position)))``; ``out`` starts at zero, so a new bridge changes nothing.
    """

    def __init__(self, width: int, positions: int, heads: int, head_size: int, norm_eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.position = nn.Parameter(torch.zeros(positions, width))  # (P, D)
        self.qkv = nn.Linear(width, 3 * heads * head_size)
        self.out = nn.Linear(heads * head_size, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def initialise(self, encoder: Encoder, generator: torch.Generator) -> None:
        """Start from the encoder's positions, scaled to stand beside a normalised input."""
        position = encoder.position_table()  # (P, D)
        with torch.no_grad():
            self.position.copy_(position * (_POSITION_SPREAD * 10 / position.std().clamp_min(1e-6)))
            nn.init.normal_(self.qkv.weight, std=_POSITION_SPREAD * 2, generator=generator)
            nn.init.zeros_(self.qkv.bias)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return (B, T, D) for ``x`` (B, T, D) under an additive attention ``bias`` (B, 1, 1, T)."""
        mixed = self.qkv(self.norm(x) + self.position[: x.shape[1]])  # (B, T, 3*H*S)
        query, key, value = (split_heads(part, self.heads) for part in mixed.chunk(3, dim=2))  # (B, H, T, S)
        heads = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)  # (B, H, T, S)
        return x + self.out(heads.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
