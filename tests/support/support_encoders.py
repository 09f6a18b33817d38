"""Small random encoders, one of each architecture, for tests that must hold for all of them."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from hmi_runtime.models.architecture import EncoderConfig
from hmi_runtime.models.encoder import Encoder

POST_NORM = EncoderConfig(
    family="bert", layers=4, width=64, heads=4, ffn_width=128, vocab_size=40, positions=24, segments=2,
    norm_eps=1e-12, activation="gelu", pad_id=0, cls_id=1, sep_id=2,
)  # fmt: skip

PRE_NORM_ROTARY = EncoderConfig(
    family="modernbert", layers=4, width=64, heads=4, ffn_width=128, vocab_size=40, positions=24, segments=0,
    norm_eps=1e-5, activation="gelu", pad_id=0, cls_id=1, sep_id=2, gated=True, rotary_base=1000.0,
    local_rotary_base=10.0, local_reach=2, global_every=3,
)  # fmt: skip

ARCHITECTURES = {"post-norm": POST_NORM, "pre-norm rotary": PRE_NORM_ROTARY}


def random_encoder(config: EncoderConfig, seed: int = 0) -> Encoder:
    """Return a frozen encoder whose parameters are all random, norms and biases too."""
    torch.manual_seed(seed)
    encoder = Encoder(config).requires_grad_(False).eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return encoder


FAMILIES = ("bert", "modernbert")


def small_model(family: str, **sizes: Any) -> PreTrainedModel:
    """Return a random model of one of ``FAMILIES``; ``sizes`` as both name them in their configurations."""
    if family == "bert":
        return BertModel(BertConfig(**sizes))
    return ModernBertModel(ModernBertConfig(**sizes, local_attention=6, pad_token_id=0))


SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
"""The first words of every vocabulary that ``save_base_model`` takes."""


def save_base_model(folder: Path, family: str, tokenizer: Tokenizer, **sizes: Any) -> None:
    """Save a random model of four layers with a tokenizer, as a base model."""
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    pad, cls, sep, unknown = SPECIAL_TOKENS
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, cls_token=cls, sep_token=sep, unk_token=unknown
    ).save_pretrained(folder)
    small_model(
        family,
        vocab_size=tokenizer.get_vocab_size(),
        num_hidden_layers=4,
        num_attention_heads=2,
        max_position_embeddings=32,
        **sizes,
    ).save_pretrained(folder)
