"""BERT, RoBERTa, XLM-R, DistilBERT: absolute positions, norms after residual sums (Devlin et al., 2019)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hmi_runtime.models.architecture import (
    Architecture,
    AttentionContext,
    Family,
    LayerSteps,
    attend,
    attention_bias,
)


class PostNorm(Architecture):
    """Layers with norms after the residual sums and global attention."""

    has_final_norm = False

    def contexts(
        self, mask: Tensor, dtype: torch.dtype = torch.float32, *, unpadded: bool = False
    ) -> Sequence[AttentionContext]:
        """Return the same context for all layers."""
        context = AttentionContext(None if unpadded else attention_bias(mask, dtype))
        return [context] * self.config.layers

    def layer(self, steps: LayerSteps, x: Tensor, context: AttentionContext) -> Tensor:
        """Return a layer's output (B, T, D) for ``x`` (B, T, D)."""
        attended = attend(steps, x, context)  # (B, T, D)
        x = steps.norm("attention_norm", steps.add_residual("attention", x, x, attended))
        inner = steps.activate(steps.ffn_up(x))  # (B, T, F)
        return steps.norm("ffn_norm", steps.add_residual("ffn", x, x, inner))


_MODULES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
_EMBEDDINGS = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "segment": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
}
_KEYS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "ffn_width": "intermediate_size",
    "activation": "hidden_act",
}


def _bert_like(name: str, prefix: str, *, counts_from_pad: bool = False) -> Family:
    return Family(
        name=name,
        architecture=PostNorm,
        prefix=prefix,
        layer="encoder.layer.{}",
        modules=_MODULES,
        embeddings=_EMBEDDINGS,
        keys=_KEYS,
        counts_from_pad=counts_from_pad,
        pooler="pooler.dense",
    )


BERT = _bert_like("bert", "bert.")
ROBERTA = _bert_like("roberta", "roberta.", counts_from_pad=True)
XLM_ROBERTA = _bert_like("xlm-roberta", "roberta.", counts_from_pad=True)
DISTILBERT = Family(
    name="distilbert",
    architecture=PostNorm,
    prefix="distilbert.",
    layer="transformer.layer.{}",
    modules={
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "attention_output": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "ffn_up": "ffn.lin1",
        "ffn_down": "ffn.lin2",
        "ffn_norm": "output_layer_norm",
    },
    embeddings={
        "word": "embeddings.word_embeddings",
        "position": "embeddings.position_embeddings",
        "embedding_norm": "embeddings.LayerNorm",
    },
    keys={
        "layers": "n_layers",
        "width": "dim",
        "heads": "n_heads",
        "ffn_width": "hidden_dim",
        "activation": "activation",
    },
)
