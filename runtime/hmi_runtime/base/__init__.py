"""Base models: where a pretrained encoder comes from and what every family looks like from inside.

Belongs here: resolving an address to files, the architectures, reading weights of each family into the one
canonical ``Encoder``, and tokenising. Forbidden here: windows, tables, adapters, training.
"""

from hmi_runtime.base.architecture import Architecture, AttentionContext, attention_bias
from hmi_runtime.base.config import MATRICES, NORMS, SUBLAYER_OUTPUT, SUBLAYERS, EncoderConfig, Sublayer
from hmi_runtime.base.encoder import Encoder, EncoderLayer, PlainSteps
from hmi_runtime.base.source import BaseModel, load_base, resolve_base
from hmi_runtime.base.tokenizer import Encoding, Tokenizer

__all__ = [
    "MATRICES",
    "NORMS",
    "SUBLAYERS",
    "SUBLAYER_OUTPUT",
    "Architecture",
    "AttentionContext",
    "BaseModel",
    "Encoder",
    "EncoderConfig",
    "EncoderLayer",
    "Encoding",
    "PlainSteps",
    "Sublayer",
    "Tokenizer",
    "attention_bias",
    "load_base",
    "resolve_base",
]
