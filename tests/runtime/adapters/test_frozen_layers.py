"""The products of every kernel equal the layer's own matrices, within the precision's rounding."""

import pytest
import torch
from support_encoders import POST_NORM, random_encoder
from torch import Tensor

from hmi_runtime.adapters.frozen import PRODUCTS, stacked_bias, stacked_weight
from hmi_runtime.adapters.kernels import Kernel, Precision, available_kernels, freeze_layers
from hmi_runtime.models.encoder import EncoderLayer

BOUNDS: dict[Precision, float] = {"float32": 1e-6, "bfloat16": 1e-2, "int8": 3e-2}
"""Largest difference of a value, as a share of the largest value."""
KERNELS = available_kernels(torch.device("cpu"))


@pytest.fixture(scope="module")
def layer() -> EncoderLayer:
    torch.set_num_threads(1)
    found = random_encoder(POST_NORM).layers[1]
    assert isinstance(found, EncoderLayer)
    return found


def inputs(product: str, rows: int) -> Tensor:
    width = POST_NORM.ffn_width if product == "ffn_down" else POST_NORM.width
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("kernel", KERNELS, ids=[kernel.name for kernel in KERNELS])
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("added", [False, True], ids=["alone", "residual"])
def test_a_product_equals_the_layers_own(
    layer: EncoderLayer, kernel: Kernel, product: str, added: bool
) -> None:
    sample = inputs("qkv", 32).view(1, 32, -1)
    (frozen,) = freeze_layers([layer], kernel, sample)
    x = inputs(product, 7)
    if kernel.precision == "int8":  # within the sample's range
        x = x.clamp(-1, 1) if product == "qkv" else x.clamp(-0.1, 0.1)
    expected = x @ stacked_weight(layer, product).t() + stacked_bias(layer, product)
    residual = torch.randn(expected.shape) if added else None
    if residual is not None:
        expected += residual.to(frozen.dtype)
        residual = residual.to(frozen.dtype)
    found = frozen.multiply(product, frozen.prepare(product, x.to(frozen.dtype)), residual)
    assert found.dtype == frozen.dtype == kernel.dtype
    assert (found - expected).abs().max() <= BOUNDS[kernel.precision] * expected.abs().max()


@pytest.mark.parametrize("kernel", KERNELS, ids=[kernel.name for kernel in KERNELS])
def test_products_leave_their_operands_unchanged(layer: EncoderLayer, kernel: Kernel) -> None:
    (frozen,) = freeze_layers([layer], kernel)
    x = inputs("qkv", 5).to(frozen.dtype)
    residual = inputs("qkv", 5).to(frozen.dtype)
    before = x.clone(), residual.clone()
    frozen.multiply("attention_output", frozen.prepare("attention_output", x), residual)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])
