"""ModernBERT: norms before the sublayers, rotary positions, gated feed-forwards (Warner et al., 2024).

Every third layer has global attention, the others local attention. The first layer has no attention norm,
since the embeddings are already normalised.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hmi_api.errors import InvalidInput
from hmi_runtime.models.architecture import (
    Architecture,
    AttentionContext,
    Family,
    LayerSteps,
    RawConfig,
    attend,
    attention_bias,
    rotation,
)


class PreNormRotary(Architecture):
    """Layers with norms before their sublayers, rotary positions, and local or global attention."""

    has_final_norm = True

    def has_norm(self, name: str, layer: int) -> bool:
        """Return whether the layer has the norm: the first has none before its attention."""
        return layer > 0 or name != "attention_norm"

    def contexts(
        self, mask: Tensor, dtype: torch.dtype = torch.float32, *, unpadded: bool = False
    ) -> Sequence[AttentionContext]:
        """Return one of two contexts for each layer: global or local."""
        config, length = self.config, mask.shape[1]
        bias = None if unpadded else attention_bias(mask, dtype)  # (B, 1, 1, T)
        global_, local = (
            AttentionContext(seen, rotation(length, config.head_width, base, mask.device))
            for seen, base in (
                (bias, config.rotary_base),
                (self._local(bias, mask, dtype), config.local_rotary_base),
            )
        )
        return [global_ if index % config.global_every == 0 else local for index in range(config.layers)]

    def _local(self, bias: Tensor | None, mask: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Return the bias (B, 1, T, T) of local attention; ``bias`` itself if all tokens are within reach."""
        if mask.shape[1] <= self.config.local_reach + 1:
            return bias
        place = torch.arange(mask.shape[1], device=mask.device)  # (T,)
        seen = (place[:, None] - place).abs() <= self.config.local_reach  # (T, T)
        if bias is None:
            bias = torch.zeros(1, 1, 1, len(place), dtype=dtype, device=mask.device)
        return bias.masked_fill(~seen, torch.finfo(dtype).min)  # (B, 1, T, T)

    def layer(self, steps: LayerSteps, x: Tensor, context: AttentionContext) -> Tensor:
        """Return a layer's output (B, T, D) for ``x`` (B, T, D)."""
        read = steps.norm("attention_norm", x)
        x = steps.add_residual("attention", x, read, attend(steps, read, context))
        read = steps.norm("ffn_norm", x)
        inner, gate = steps.ffn_up(read).chunk(2, dim=-1)  # (B, T, F)
        return steps.add_residual("ffn", x, read, steps.activate(inner) * gate)


def _further_sizes(raw: RawConfig) -> dict[str, Any]:
    angles: RawConfig = raw.get("rope_parameters") or {}
    everywhere: RawConfig = angles.get("full_attention") or {}
    near: RawConfig = angles.get("sliding_attention") or {}
    for kind in (everywhere, near, raw.get("rope_scaling") or {}):
        if kind.get("rope_type", "default") != "default":
            raise InvalidInput(
                "BaseModelUnsupported",
                f"rope_type {kind['rope_type']!r} is not served; choose a base model with the default one.",
            )
    return {
        "gated": True,
        "rotary_base": float(everywhere.get("rope_theta", raw.get("global_rope_theta", 160_000.0))),
        "local_rotary_base": float(near.get("rope_theta", raw.get("local_rope_theta", 10_000.0))),
        "local_reach": int(raw.get("local_attention", 128)) // 2,
        "global_every": _global_every(raw),
    }


def _global_every(raw: RawConfig) -> int:
    """Return n such that layers 0, n, 2n... have global attention; ``InvalidInput`` if there is none."""
    types = raw.get("layer_types")
    if types is None:
        return int(raw.get("global_attn_every_n_layers", 3))
    everywhere = [index for index, kind in enumerate(types) if kind == "full_attention"]
    every = everywhere[1] if len(everywhere) > 1 else len(types)
    if everywhere != list(range(0, len(types), every)):
        raise InvalidInput(
            "BaseModelUnsupported",
            f"layer_types with full attention in layers {everywhere} are not served; "
            "choose a base model where every n-th layer has it, from the first on.",
        )
    return every


MODERNBERT = Family(
    name="modernbert",
    architecture=PreNormRotary,
    prefix="model.",
    layer="layers.{}",
    modules={
        "query": "attn.Wqkv",
        "key": "attn.Wqkv",
        "value": "attn.Wqkv",
        "attention_output": "attn.Wo",
        "attention_norm": "attn_norm",
        "ffn_up": "mlp.Wi",
        "ffn_down": "mlp.Wo",
        "ffn_norm": "mlp_norm",
    },
    fused={"attn.Wqkv": ("query", "key", "value")},
    embeddings={
        "word": "embeddings.tok_embeddings",
        "embedding_norm": "embeddings.norm",
        "final_norm": "final_norm",
    },
    keys={
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "ffn_width": "intermediate_size",
        "activation": "hidden_activation",
        "norm_eps": "norm_eps",
    },
    further_sizes=_further_sizes,
    norm_eps=1e-5,
    may_lack_biases=True,
)
