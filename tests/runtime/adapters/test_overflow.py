"""A row whose values overflow gets an error on all kernels; the other rows are answered."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from support_encoders import ARCHITECTURES, random_encoder

from hmi_api.internal.inference import InferRow
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.adapters.executor import UpperExecutor
from hmi_runtime.adapters.heads import run_heads
from hmi_runtime.adapters.kernels import Kernel, available_kernels
from hmi_runtime.adapters.slot_pool import SlotLimits, SlotPool
from hmi_runtime.adapters.weights import AdapterWeights, Bottleneck, Dense, Head, LayerAdapter, LoraMatrix
from hmi_runtime.cache.adapter_cache import AdapterId
from hmi_runtime.models.architecture import EncoderConfig, Sublayer
from hmi_runtime.models.encoder import UpperLayers
from hmi_runtime.models.tokenizer import Encoding
from hmi_runtime.serving.engine import row_results
from hmi_runtime.serving.loaded import EngineKey, LoadedAdapter
from hmi_runtime.serving.requests import PendingRequest, Text
from hmi_runtime.serving.staging import BatchRow

SPLIT = 1
LENGTH = 5
LIMITS = SlotLimits(max_rank=8, max_bottleneck=4, max_labels=3)
RUNS = [
    pytest.param(architecture, kernel, id=f"{architecture}-{kernel.name}")
    for architecture, config in ARCHITECTURES.items()
    for kernel in available_kernels(torch.device("cpu"), UpperLayers(random_encoder(config), SPLIT))
]

Change = Callable[[EncoderConfig], LayerAdapter]


def lora(matrix: str, value: float) -> Change:
    def change(config: EncoderConfig) -> LayerAdapter:
        outer, inner = config.matrix_shape(matrix)
        b = torch.zeros(outer, 2)
        b[0] = value
        return LayerAdapter(lora={matrix: LoraMatrix(torch.randn(2, inner), b)})

    return change


def bias(matrix: str, value: float) -> Change:
    def change(config: EncoderConfig) -> LayerAdapter:
        return LayerAdapter(bias={matrix: torch.full(config.matrix_shape(matrix)[:1], value)})

    return change


def norm(value: float) -> Change:
    def change(config: EncoderConfig) -> LayerAdapter:
        weight = torch.ones(config.width)
        weight[3] = value
        return LayerAdapter(norms={"attention_norm": (weight, torch.zeros(config.width))})

    return change


def bottleneck(value: float) -> Change:
    def change(config: EncoderConfig) -> LayerAdapter:
        """Return an adapter whose ReLU would turn overflowed values into zeros."""
        made = Bottleneck(
            torch.zeros(4, config.width), torch.full((4,), value), torch.ones(config.width, 4),
            torch.zeros(config.width),
        )  # fmt: skip
        places: tuple[Sublayer, ...] = ("attention", "ffn")
        return LayerAdapter(bottlenecks=dict.fromkeys(places, made))

    return change


def wide_bottleneck(value: float) -> Change:
    def change(config: EncoderConfig) -> LayerAdapter:
        """Return an adapter whose inner values are ones, and whose outputs differ by ``value``."""
        up = torch.zeros(config.width, 4)
        up[0] = value
        made = Bottleneck(torch.zeros(4, config.width), torch.ones(4), up, torch.zeros(config.width))
        return LayerAdapter(bottlenecks={"attention": made})

    return change


CHANGES: dict[str, Change] = {
    "infinite query": lora("query", torch.inf),
    "infinite key": lora("key", -torch.inf),
    "infinite value": lora("value", torch.inf),
    "query that is no number": lora("query", torch.nan),
    "finite query that overflows": lora("query", 3e38),
    "finite query and scores that overflow": lora("query", 1e25),
    "finite output whose variance overflows": lora("attention_output", 1e25),
    "infinite widening": lora("ffn_up", -torch.inf),
    "infinite bias of keys": bias("key", torch.inf),
    "infinite bias in the feed-forward": bias("ffn_down", torch.inf),
    "infinite norm": norm(torch.inf),
    "finite norm that overflows": norm(1e38),
    "infinite bottleneck": bottleneck(-torch.inf),
    "finite bottleneck whose output's variance overflows": wide_bottleneck(1e25),
}


def adapter(
    config: EncoderConfig, change: LayerAdapter | None = None, head: Head | None = None
) -> AdapterWeights:
    return AdapterWeights(
        task=TaskType.SEQUENCE_CLASSIFICATION,
        labels=("a", "b", "c"),
        layers={SPLIT: change} if change is not None else {},
        head=head or Head("first", torch.randn(3, config.width), torch.randn(3)),
        base_digest="sha256:base",
    )


@pytest.mark.parametrize(("architecture", "kernel"), RUNS)
@pytest.mark.parametrize("padded", [False, True], ids=["no padding", "padding"])
@pytest.mark.parametrize("change", CHANGES)
def test_an_overflow_in_the_upper_layers_gives_nan(
    change: str, architecture: str, padded: bool, kernel: Kernel
) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    upper = UpperLayers(random_encoder(ARCHITECTURES[architecture]), SPLIT)
    pool = SlotPool(upper, 2, replace(LIMITS, dtype=kernel.slot_dtype))
    good, bad = adapter(upper.config), adapter(upper.config, CHANGES[change](upper.config))
    pool.write(0, good)
    pool.write(1, bad)
    hidden = torch.randn(3, LENGTH, upper.config.width)
    mask = torch.ones(3, LENGTH, dtype=torch.bool)
    if padded:
        mask[:, 3:] = False
    executor = UpperExecutor(upper, pool, kernel)
    alone = executor.run(hidden, mask, [0, 0, 0])

    found = executor.run(hidden, mask, [0, 1, 0])

    logits = run_heads(pool, found, mask, [0, 1, 0])
    assert found[1].isnan().all()
    assert logits[1].isnan().all()
    for row in (0, 2):
        assert logits[row].isfinite().all()
        torch.testing.assert_close(found[row], alone[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu"])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 3e38, -3e38])
def test_an_overflow_in_a_dense_head_gives_nan(activation: str, value: float) -> None:
    torch.manual_seed(0)
    upper = UpperLayers(random_encoder(ARCHITECTURES["post-norm"]), SPLIT)
    width = upper.config.width
    dense = Dense(torch.full((width, width), value), torch.zeros(width), activation)  # type: ignore[arg-type]
    pool = SlotPool(upper, 1, LIMITS)
    pool.write(0, adapter(upper.config, head=Head("first", torch.randn(3, width), torch.zeros(3), dense)))
    hidden = torch.full((1, LENGTH, width), 10.0)
    (logits,) = run_heads(pool, hidden, torch.ones(1, LENGTH, dtype=torch.bool), [0])
    assert not logits.isfinite().any()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_logit_that_is_not_finite_gives_an_error(value: float) -> None:
    """A softmax over a logit of -inf gives probabilities that sum to one."""
    adapter = LoadedAdapter(
        AdapterId("acme/topic", 1),
        engine=EngineKey("sha256:base", 2),
        domain=None,  # type: ignore[arg-type]
        task=TaskType.SEQUENCE_CLASSIFICATION,
        labels=("a", "b"),
        artifact=None,  # type: ignore[arg-type]
    )
    request = PendingRequest([InferRow(adapter="acme/topic", text="x")], 0.0, lambda _: None)
    row = BatchRow(request, 0, adapter, Text("x", None, Encoding([1, 2], [], [])))
    right = replace(row, adapter=replace(adapter, labels=("a",)))
    logits = np.array([[0.5, value], [0.5, value]], dtype=np.float32)
    result, other = row_results([row, right], logits, [0, 0])
    assert result.error is not None
    assert result.error.reason == "AdapterOutputInvalid"
    assert not result.scores
    assert other.scores == [1.0]  # the second logit is padding of the batch


def test_large_values_that_do_not_overflow_are_answered() -> None:
    torch.manual_seed(0)
    upper = UpperLayers(random_encoder(ARCHITECTURES["post-norm"]), SPLIT)
    large = replace(adapter(upper.config), layers={SPLIT: lora("attention_output", 1e9)(upper.config)})
    pool = SlotPool(upper, 1, LIMITS)
    pool.write(0, large)
    mask = torch.ones(1, LENGTH, dtype=torch.bool)
    found = UpperExecutor(upper, pool).run(torch.randn(1, LENGTH, upper.config.width), mask, [0])
    assert found.isfinite().all()
