"""Weights that are infinite or NaN are refused wherever they are read, made or written."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support_encoders import POST_NORM, random_encoder, small_model
from torch import nn

from hmi_api.errors import Damaged, InvalidInput
from hmi_api.resources.domain import TableDtype
from hmi_runtime.models.domain_layers import WEIGHTS_FILE as LAYERS_FILE
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.families import encoder_config
from hmi_runtime.models.weights import WEIGHTS_FILE, read_encoder
from hmi_runtime.tables.table import encode
from hmi_runtime.training.backbone import to_float16
from hmi_runtime.training.optim import optimizer_step

NOT_FINITE = pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])


def spoil(path: Path, name: str, value: float) -> None:
    tensors = load_file(path)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path)


@NOT_FINITE
def test_a_base_model_that_is_not_finite_is_refused(value: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small_model(
        "bert", vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=16,
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    config = encoder_config(model.config.to_dict(), cls_id=1, sep_id=2, pad_id=0)
    spoil(tmp_path / WEIGHTS_FILE, "encoder.layer.1.attention.self.key.bias", value)
    with pytest.raises(InvalidInput, match=r"BaseModelNotFinite: layers.1.key.bias"):
        read_encoder(tmp_path, config)


@NOT_FINITE
def test_layers_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    encoder = random_encoder(POST_NORM)
    DomainLayers.from_encoder(encoder, 2, bridge_heads=2, bridge_head_size=8).save(tmp_path)
    spoil(tmp_path / LAYERS_FILE, "gates", value)
    with pytest.raises(Damaged, match="LayersNotFinite: gates"):
        DomainLayers.load(tmp_path, encoder)


@NOT_FINITE
@pytest.mark.parametrize("dtype", list(TableDtype))
def test_a_table_stores_finite_values_only(value: float, dtype: TableDtype) -> None:
    """Clamping to float16 would turn infinity into a number."""
    parts = torch.zeros(2, 3, 4)
    parts[1, 2, 3] = value
    with pytest.raises(Damaged, match="LayersNotFinite"):
        encode(parts, dtype)


@NOT_FINITE
def test_a_gradient_that_is_not_finite_ends_training(value: float) -> None:
    module = nn.Linear(2, 1)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    loss = module(torch.ones(1, 2)).sum() * value
    with pytest.raises(InvalidInput, match=r"TrainingDiverged.*lower training.learningRate"):
        optimizer_step(loss, module, optimizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_values_beyond_float16_are_clamped() -> None:
    assert to_float16(torch.tensor([1e6, -1e6, 0.5])).tolist() == [65504.0, -65504.0, 0.5]
