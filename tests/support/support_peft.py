"""PEFT folders of tiny transformers models, as the ``peft`` package itself writes them."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from hmi_api.resources.task_adapter import Task, TaskType
from hmi_runtime.models.families import encoder_config
from hmi_runtime.models.source import BaseModel

SIZES = {"vocab_size": 30, "max_position_embeddings": 20, "num_labels": 3}
BERT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
MODELS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "bert": (BertForSequenceClassification, BertConfig(**SIZES, **BERT, pad_token_id=0)),
    "bert tokens": (BertForTokenClassification, BertConfig(**SIZES, **BERT, pad_token_id=0)),
    "roberta": (RobertaForSequenceClassification, RobertaConfig(**SIZES, **BERT, pad_token_id=1)),
    "distilbert": (
        DistilBertForSequenceClassification,
        DistilBertConfig(**SIZES, dim=16, n_layers=3, n_heads=2, hidden_dim=24, pad_token_id=0),
    ),
}


def make_model(kind: str, folder: Path) -> tuple[PreTrainedModel, BaseModel]:
    """Return a random task model and its base model, saved in ``folder``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model_class, config = MODELS[kind]
    model = model_class(copy.deepcopy(config)).eval()
    for parameter in model.parameters():  # biases and norms start as zeros and ones, which would hide errors
        parameter.data += torch.randn_like(parameter) * 0.1
    model.save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    sizes = encoder_config(raw, cls_id=2, sep_id=3, pad_id=raw["pad_token_id"])
    return model, BaseModel(str(folder), folder, "sha256:base", sizes, cast(Any, SimpleNamespace()))


def tune(model: nn.Module) -> None:
    """Change every trainable parameter at random, so that each one affects the output."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.2


SEQUENCE = Task(type=TaskType.SEQUENCE_CLASSIFICATION, labels=["a", "b", "c"])


def saved_adapter(tmp_path: Path, **options: Any) -> tuple[BaseModel, Path]:
    model, base = make_model("bert", tmp_path / "base")
    settings = {"task_type": "SEQ_CLS", "r": 4, "target_modules": ["query", "value"], **options}
    tuned = get_peft_model(model, LoraConfig(**settings))
    tune(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    return base, tmp_path / "adapter"


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
