"""The batched executor equals the per-row reference, whatever adapters are in a batch."""

from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support_encoders import ARCHITECTURES, POST_NORM, random_encoder
from torch import Tensor

from hmi_api.errors import InvalidInput
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.adapters.executor import UpperExecutor
from hmi_runtime.adapters.reference import run_row
from hmi_runtime.adapters.slot_pool import BARE, SlotLimits, SlotPool, bucket
from hmi_runtime.adapters.weights import AdapterWeights, Bottleneck, Head, LayerAdapter, LoraMatrix
from hmi_runtime.models.architecture import MATRICES, NORMS, EncoderConfig
from hmi_runtime.models.encoder import UpperLayers

SPLIT = 1
CONFIG = POST_NORM
LIMITS = SlotLimits(max_rank=20, max_bottleneck=12, max_labels=5)


@cache
def upper_layers(architecture: str) -> UpperLayers:
    torch.set_num_threads(1)
    return UpperLayers(random_encoder(ARCHITECTURES[architecture]), SPLIT)


@pytest.fixture
def upper() -> UpperLayers:
    return upper_layers("post-norm")


def random_tensor(seed: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=seed) * 0.3


def random_layer(
    draw: st.DrawFn, config: EncoderConfig, seed: torch.Generator, bottleneck: tuple[str, int] | None
) -> LayerAdapter:
    lora = {}
    for name in draw(st.sets(st.sampled_from(MATRICES))):
        out, inner = config.matrix_shape(name)
        rank = draw(st.integers(1, LIMITS.max_rank))
        lora[name] = LoraMatrix(random_tensor(seed, rank, inner), random_tensor(seed, out, rank))
    biases = draw(st.sets(st.sampled_from(MATRICES), max_size=2))
    norms = draw(st.sets(st.sampled_from(NORMS)))
    bottlenecks = {}
    if bottleneck is not None:
        placement, width = bottleneck
        bottlenecks = {
            place: Bottleneck(
                random_tensor(seed, width, config.width),
                random_tensor(seed, width),
                random_tensor(seed, config.width, width),
                random_tensor(seed, config.width),
                "relu" if width % 2 else "gelu",
                "sequential" if placement in ("sequential", place) else "parallel",
            )
            for place in ("attention", "ffn")
        }
    return LayerAdapter(
        lora=lora,
        bias={name: random_tensor(seed, config.matrix_shape(name)[0]) for name in biases},
        norms={n: (1 + random_tensor(seed, config.width), random_tensor(seed, config.width)) for n in norms},
        bottlenecks=bottlenecks,
    )


@st.composite
def adapters(draw: st.DrawFn, config: EncoderConfig) -> AdapterWeights:
    seed = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    bottleneck = draw(
        st.none()
        | st.tuples(st.sampled_from(["parallel", "sequential", "ffn"]), st.integers(1, LIMITS.max_bottleneck))
    )
    layers = draw(st.sets(st.integers(SPLIT, config.layers - 1)))
    return AdapterWeights(
        task=TaskType.SEQUENCE_CLASSIFICATION,
        labels=("a", "b"),
        layers={index: random_layer(draw, config, seed, bottleneck) for index in layers},
        head=Head("first", random_tensor(seed, 2, config.width), random_tensor(seed, 2)),
        base_digest="sha256:base",
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(length=st.integers(1, 7), data=st.data())
def test_every_row_equals_its_own_run(architecture: str, length: int, data: st.DataObject) -> None:
    upper = upper_layers(architecture)
    stored = data.draw(st.lists(adapters(upper.config), min_size=1, max_size=5))
    pool = SlotPool(upper, 5, LIMITS)
    for slot, weights in enumerate(stored):
        pool.write(slot, weights)
    slots = data.draw(st.lists(st.integers(BARE, len(stored) - 1), min_size=1, max_size=8))
    lengths = data.draw(st.lists(st.integers(1, length), min_size=len(slots), max_size=len(slots)))
    hidden = torch.randn(len(slots), length, CONFIG.width, generator=torch.Generator().manual_seed(length))
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]  # (B, T)

    found = UpperExecutor(upper, pool).run(hidden, mask, slots)

    for row, slot in enumerate(slots):
        adapter = None if slot == BARE else stored[slot]
        expected = run_row(upper, adapter, hidden[row], mask[row])
        torch.testing.assert_close(found[row, : lengths[row]], expected[: lengths[row]], atol=5e-5, rtol=1e-5)


def lora_adapter(rank: int, value: float = 0.1) -> AdapterWeights:
    width = CONFIG.width
    lora = {"query": LoraMatrix(torch.full((rank, width), value), torch.full((width, rank), value))}
    return AdapterWeights(
        task=TaskType.SEQUENCE_CLASSIFICATION,
        labels=("a", "b"),
        layers={1: LayerAdapter(lora=lora)},
        head=Head("first", torch.ones(2, width), torch.zeros(2)),
        base_digest="sha256:base",
    )


def test_a_rewritten_slot_keeps_nothing_of_the_previous_adapter(upper: UpperLayers) -> None:
    hidden, mask = torch.randn(1, 4, CONFIG.width), torch.ones(1, 4, dtype=torch.bool)
    reused, fresh = SlotPool(upper, 1, LIMITS), SlotPool(upper, 1, LIMITS)
    reused.write(0, lora_adapter(20, 0.7))
    reused.write(0, lora_adapter(3))
    fresh.write(0, lora_adapter(3))
    assert torch.equal(
        UpperExecutor(upper, reused).run(hidden, mask, [0]),
        UpperExecutor(upper, fresh).run(hidden, mask, [0]),
    )


def test_a_cleared_slot_runs_as_the_frozen_layers(upper: UpperLayers) -> None:
    hidden, mask = torch.randn(2, 4, CONFIG.width), torch.ones(2, 4, dtype=torch.bool)
    pool = SlotPool(upper, 1, LIMITS)
    pool.write(0, lora_adapter(3))
    pool.clear(0)
    torch.testing.assert_close(UpperExecutor(upper, pool).run(hidden, mask, [0, BARE]), upper(hidden, mask))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("slots", [[BARE, 0], [0, BARE]], ids=["in order", "in another order"])
def test_the_callers_tensors_are_not_changed(architecture: str, slots: list[int]) -> None:
    upper = upper_layers(architecture)
    hidden, mask = torch.randn(2, 4, CONFIG.width), torch.ones(2, 4, dtype=torch.bool)
    pool = SlotPool(upper, 1, LIMITS)
    pool.write(0, lora_adapter(3))
    before = hidden.clone()
    executor = UpperExecutor(upper, pool)
    first = executor.run(hidden, mask, slots)
    kept = first.clone()
    executor.run(hidden + 1, mask, slots[::-1])
    assert torch.equal(hidden, before)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("rank", [LIMITS.max_rank + 1, 64])
def test_an_adapter_larger_than_a_slot_is_refused_and_changes_nothing(upper: UpperLayers, rank: int) -> None:
    pool = SlotPool(upper, 1, LIMITS)
    pool.write(0, lora_adapter(3))
    before = pool.tensor("query.lora_b").clone()
    for refuse in (pool.check_fits, lambda weights: pool.write(0, weights)):
        with pytest.raises(InvalidInput, match=r"AdapterTooLarge.*HMI_MAX_RANK"):
            refuse(lora_adapter(rank))
    assert torch.equal(pool.tensor("query.lora_b"), before)
    assert pool.traits[0].rank == bucket(3, LIMITS.max_rank)


def test_an_unknown_slot_is_an_error(upper: UpperLayers) -> None:
    pool = SlotPool(upper, 2, LIMITS)
    for slot in (2, -2):
        with pytest.raises(IndexError):
            pool.index(slot)


def test_slot_bytes_equal_the_pools_memory_per_slot(upper: UpperLayers) -> None:
    def total(slots: int) -> int:
        pool = SlotPool(upper, slots, LIMITS)
        return sum(t.numel() * t.element_size() for t in pool._tensors.values())

    assert total(4) - total(3) == SlotPool.slot_bytes(CONFIG, SPLIT, LIMITS)


@pytest.mark.parametrize(("size", "padded"), [(0, 0), (1, 8), (8, 8), (9, 16), (17, 20), (20, 20)])
def test_ranks_are_padded_to_buckets(size: int, padded: int) -> None:
    assert bucket(size, 20) == padded
