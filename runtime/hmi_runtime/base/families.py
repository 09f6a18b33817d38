"""Families: how each kind of checkpoint names its tensors and counts its positions.

A family is one entry here: a recogniser of ``model_type``, its configuration keys, its tensor names and
its PEFT module paths. BERT, MiniLM and ELECTRA-shaped checkpoints share one; RoBERTa and XLM-R differ in
their position offset; DistilBERT has other names and no segments.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hmi_api.errors import InvalidInput
from hmi_runtime.base.architecture import EncoderConfig


@dataclass(frozen=True)
class Family:
    """What tells one family of checkpoints from another."""

    name: str
    prefix: str
    """What a task model of transformers puts before every name, such as ``bert.``."""
    layer: str
    """Path of layer ``{}`` under the prefix."""
    modules: Mapping[str, str]
    """Canonical module name -> path under a layer."""
    embeddings: Mapping[str, str]
    """Canonical embedding module -> path under the prefix."""
    keys: Mapping[str, str]
    """Canonical size -> key in config.json."""
    counts_from_pad: bool = False
    """True where the first token's position is pad + 1, so that the rows before it are never used."""
    pooler: str | None = None

    def module_path(self, layer: int, module: str) -> str:
        """Return the path of a layer's module in a transformers task model, prefix included."""
        return f"{self.prefix}{self.layer.format(layer)}.{self.modules[module]}"


_BERT_MODULES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
_BERT_EMBEDDINGS = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "segment": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
}
_BERT_KEYS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "ffn_width": "intermediate_size",
    "activation": "hidden_act",
}


def _bert_like(name: str, prefix: str, *, counts_from_pad: bool = False) -> Family:
    return Family(
        name=name,
        prefix=prefix,
        layer="encoder.layer.{}",
        modules=_BERT_MODULES,
        embeddings=_BERT_EMBEDDINGS,
        keys=_BERT_KEYS,
        counts_from_pad=counts_from_pad,
        pooler="pooler.dense",
    )


FAMILIES: dict[str, Family] = {
    "bert": _bert_like("bert", "bert."),
    "roberta": _bert_like("roberta", "roberta.", counts_from_pad=True),
    "xlm-roberta": _bert_like("xlm-roberta", "roberta.", counts_from_pad=True),
    "distilbert": Family(
        name="distilbert",
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
    ),
}


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family of a config.json; ``InvalidInput`` BaseModelUnsupported when there is none."""
    model_type = str(config.get("model_type", ""))
    family = FAMILIES.get(model_type)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise InvalidInput(
            "BaseModelUnsupported",
            f"model_type {model_type!r} is not served yet; choose a base model of one of: {known}.",
        )
    position = config.get("position_embedding_type", "absolute")
    if position != "absolute":
        raise InvalidInput(
            "BaseModelUnsupported",
            f"position_embedding_type {position!r} is not served; choose one with absolute positions.",
        )
    return family


def encoder_config(config: Mapping[str, Any], *, cls_id: int, sep_id: int, pad_id: int) -> EncoderConfig:
    """Read the canonical sizes from a checkpoint's config.json and its tokenizer's special ids."""
    family = family_of(config)
    keys = family.keys
    offset = pad_id + 1 if family.counts_from_pad else 0
    return EncoderConfig(
        family=family.name,
        layers=int(config[keys["layers"]]),
        width=int(config[keys["width"]]),
        heads=int(config[keys["heads"]]),
        ffn_width=int(config[keys["ffn_width"]]),
        vocab_size=int(config["vocab_size"]),
        positions=int(config["max_position_embeddings"]) - offset,
        segments=int(config.get("type_vocab_size", 0)) if "segment" in family.embeddings else 0,
        norm_eps=float(config.get("layer_norm_eps", 1e-12)),
        activation=str(config.get(keys["activation"], "gelu")),
        pad_id=pad_id,
        cls_id=cls_id,
        sep_id=sep_id,
    )
