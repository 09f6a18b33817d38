"""Models in plain, differentiable torch: base models of every family, and the split model (hPLM) on top.

Belongs here: reading a checkpoint into the canonical ``Encoder``, tokenising, windows, a Domain's lower
layers with the bridge, and the frozen upper layers. Training trains these modules, and every fast path is
compared with them. Forbidden here: tables, adapters, batching.
"""

from hmi_runtime.models.architecture import (
    MATRICES,
    NORMS,
    SUBLAYER_OUTPUT,
    SUBLAYERS,
    Architecture,
    AttentionContext,
    EncoderConfig,
    Sublayer,
    attention_bias,
)
from hmi_runtime.models.domain_layers import BridgeAttention, DomainLayers, DomainLayersConfig
from hmi_runtime.models.encoder import Encoder, EncoderLayer, PlainSteps, UpperLayers
from hmi_runtime.models.source import BaseModel, load_base, resolve_base
from hmi_runtime.models.tokenizer import Encoding, Tokenizer
from hmi_runtime.models.windows import ABSENT, compose, contributions, pack, trigrams, unpack

__all__ = [
    "ABSENT",
    "MATRICES",
    "NORMS",
    "SUBLAYERS",
    "SUBLAYER_OUTPUT",
    "Architecture",
    "AttentionContext",
    "BaseModel",
    "BridgeAttention",
    "DomainLayers",
    "DomainLayersConfig",
    "Encoder",
    "EncoderConfig",
    "EncoderLayer",
    "Encoding",
    "PlainSteps",
    "Sublayer",
    "Tokenizer",
    "UpperLayers",
    "attention_bias",
    "compose",
    "contributions",
    "load_base",
    "pack",
    "resolve_base",
    "trigrams",
    "unpack",
]
