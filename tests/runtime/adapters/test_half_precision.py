"""Adapters in half precision: what is halved, what it costs in accuracy, and which matrices stay float32."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support_encoders import POST_NORM
from torch import Tensor

from hmi_api.errors import InvalidInput
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.adapters.checks import check_adapter
from hmi_runtime.adapters.half_precision import LARGEST_ERROR, halved, halved_factors
from hmi_runtime.adapters.weights import (
    ADAPTER_FILE,
    AdapterWeights,
    Bottleneck,
    Dense,
    Head,
    LayerAdapter,
    LoraMatrix,
)
from hmi_runtime.models.architecture import MATRICES, NORMS

WIDTH, SPLIT = POST_NORM.width, 2


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.1


def a_layer(bottleneck: bool) -> LayerAdapter:
    shapes = {name: POST_NORM.matrix_shape(name) for name in MATRICES}
    narrow = Bottleneck(normal(4, WIDTH), normal(4), normal(WIDTH, 4), normal(WIDTH))
    return LayerAdapter(
        lora={name: LoraMatrix(normal(4, inner), normal(out, 4)) for name, (out, inner) in shapes.items()},
        bias={name: normal(out) for name, (out, _) in shapes.items()},
        norms={name: (1 + normal(WIDTH), normal(WIDTH)) for name in NORMS},
        bottlenecks={"ffn": narrow} if bottleneck else {},
    )


def an_adapter(bottleneck: bool = False) -> AdapterWeights:
    dense = Dense(normal(WIDTH, WIDTH), normal(WIDTH))
    return AdapterWeights(
        task=TaskType.SEQUENCE_CLASSIFICATION,
        labels=("a", "b", "c"),
        layers={index: a_layer(bottleneck) for index in range(SPLIT, POST_NORM.layers)},
        head=Head("first", normal(3, WIDTH), normal(3), dense),
        base_digest="sha256:base",
    )


def is_float16(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float16


@pytest.mark.parametrize("bottleneck", [False, True])
def test_matrices_are_stored_in_half_precision_and_vectors_are_not(bottleneck: bool) -> None:
    trained = an_adapter(bottleneck)
    stored = dict(trained.as_stored().named_tensors())
    for name, tensor in trained.named_tensors():
        assert stored[name].dtype == (torch.float16 if tensor.dim() == 2 else torch.float32)
        if tensor.dim() == 1:
            assert torch.equal(stored[name], tensor)
        else:
            torch.testing.assert_close(stored[name].float(), tensor, rtol=2**-11, atol=2**-25)
    matrices = sum(tensor.numel() for _, tensor in trained.named_tensors() if tensor.dim() == 2)
    assert trained.as_stored().nbytes == trained.nbytes - 2 * matrices


def test_a_stored_adapter_is_stored_again_unchanged(tmp_path: Path) -> None:
    trained = an_adapter()
    unbalanced = LoraMatrix(normal(4, WIDTH) * 1e-6, normal(WIDTH, 4) * 1e6)
    layer = replace(trained.layers[SPLIT], lora={"query": unbalanced})
    trained = replace(trained, layers={**trained.layers, SPLIT: layer})
    trained.save(tmp_path / "trained")
    loaded = AdapterWeights.load(tmp_path / "trained")
    loaded.save(tmp_path / "again")
    loaded.as_float32().save(tmp_path / "computed")
    files = [(tmp_path / name / ADAPTER_FILE).read_bytes() for name in ("trained", "again", "computed")]
    assert files[0] == files[1] == files[2]


def test_computing_is_in_float32() -> None:
    stored = an_adapter(bottleneck=True).as_stored()
    whole = dict(stored.as_float32().named_tensors())
    for name, tensor in stored.named_tensors():
        assert whole[name].dtype == torch.float32
        assert torch.equal(whole[name], tensor.float())


def test_the_file_of_an_earlier_version_is_read_as_it_is(tmp_path: Path) -> None:
    """Earlier versions wrote every tensor in float32."""
    trained = an_adapter()
    earlier = {name: tensor.contiguous() for name, tensor in trained.named_tensors()}
    save_file(earlier, tmp_path / ADAPTER_FILE, metadata={"hmi": json.dumps(trained.config())})
    loaded = AdapterWeights.load(tmp_path)
    check_adapter(loaded, POST_NORM, SPLIT)
    for name, tensor in loaded.named_tensors():
        assert torch.equal(tensor, earlier[name])
    assert loaded.nbytes == trained.nbytes


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int8])
def test_a_file_with_another_type_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    an_adapter().save(tmp_path)
    path = tmp_path / ADAPTER_FILE
    tensors = load_file(path)
    tensors["head.weight"] = tensors["head.weight"].to(dtype)
    save_file(tensors, path, metadata={"hmi": json.dumps(an_adapter().config())})
    with pytest.raises(InvalidInput, match=r"AdapterFormat: head.weight .* type torch\.\w+"):
        AdapterWeights.load(tmp_path)


def test_a_matrix_beyond_the_range_of_float16_stays_float32() -> None:
    too_large, too_small = normal(4, WIDTH) * 1e7, normal(4, WIDTH) * 1e-6
    one_small_row = torch.cat([normal(3, WIDTH), normal(1, WIDTH) * 1e-6])
    for matrix in (too_large, too_small, one_small_row):
        assert torch.equal(halved(matrix), matrix)
    assert is_float16(halved(torch.zeros(4, WIDTH)))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_kept_for_the_check(value: float) -> None:
    spoilt = normal(4, WIDTH)
    spoilt[1, 2] = value
    torch.testing.assert_close(halved(spoilt), spoilt, equal_nan=True, rtol=0, atol=0)
    a, _ = halved_factors(spoilt, normal(WIDTH, 4))
    torch.testing.assert_close(a, spoilt, equal_nan=True, rtol=0, atol=0)


@given(
    exponents=st.lists(st.integers(-40, 40), min_size=4, max_size=4),
    sizes=st.lists(st.integers(-8, 4), min_size=4, max_size=4),
)
def test_factors_are_scaled_against_each_other_where_one_does_not_fit(
    exponents: list[int], sizes: list[int]
) -> None:
    """Direction i of a is 2^(size + exponent) large, of b 2^(size - exponent): their product always fits."""
    shift, size = torch.tensor(exponents), torch.tensor(sizes)
    a = torch.ldexp(normal(4, WIDTH), (size + shift)[:, None])
    b = torch.ldexp(normal(24, 4), size - shift)
    half_a, half_b = halved_factors(a, b)
    assert is_float16(half_a)
    assert is_float16(half_b)
    for direction in range(4):
        found = torch.outer(half_b[:, direction].double(), half_a[direction].double())
        expected = torch.outer(b[:, direction].double(), a[direction].double())
        assert (found - expected).norm() <= 2.01 * LARGEST_ERROR * expected.norm()


def test_factors_whose_product_does_not_fit_stay_as_they_are() -> None:
    a, b = normal(4, WIDTH), normal(WIDTH, 4) * 1e30
    half_a, half_b = halved_factors(a, b)
    assert is_float16(half_a)
    assert torch.equal(half_b, b)
    assert torch.equal(half_a.float(), a.half().float())


def test_factors_that_fit_are_not_scaled() -> None:
    a, b = normal(4, WIDTH) * 100, normal(WIDTH, 4) / 100
    half_a, half_b = halved_factors(a, b)
    assert torch.equal(half_a, a.half())
    assert torch.equal(half_b, b.half())
