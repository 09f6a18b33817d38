"""Base models: where a pretrained encoder comes from and what every family looks like from inside.

Belongs here: resolving an address to files, reading weights of each family into the one canonical
``Encoder``, and tokenising. Forbidden here: windows, tables, adapters, training.
"""

from hmi_runtime.base.architecture import (
    MATRICES,
    NORMS,
    Encoder,
    EncoderConfig,
    EncoderLayer,
    attention_bias,
)
from hmi_runtime.base.source import BaseModel, load_base, resolve_base
from hmi_runtime.base.tokenizer import Encoding, Tokenizer

__all__ = [
    "MATRICES",
    "NORMS",
    "BaseModel",
    "Encoder",
    "EncoderConfig",
    "EncoderLayer",
    "Encoding",
    "Tokenizer",
    "attention_bias",
    "load_base",
    "resolve_base",
]
