"""The C++ kernels: each step against a formula in float32, and the layers against the reference."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support_encoders import POST_NORM, random_encoder
from torch import Tensor
from torch.nn import functional

import build_kernels
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.adapters.executor import UpperExecutor
from hmi_runtime.adapters.kernels import Kernel, has_bfloat16, has_native, runs_model
from hmi_runtime.adapters.native import library
from hmi_runtime.adapters.native.layers import Batch, Product
from hmi_runtime.adapters.quantization import calibration_sample
from hmi_runtime.adapters.reference import run_row
from hmi_runtime.adapters.slot_pool import BARE, SlotLimits, SlotPool
from hmi_runtime.adapters.weights import (
    AdapterWeights,
    Bottleneck,
    BottleneckPlacement,
    Head,
    LayerAdapter,
    LoraMatrix,
)
from hmi_runtime.models.architecture import ACTIVATIONS, MATRICES, NORMS, SUBLAYERS, EncoderConfig
from hmi_runtime.models.encoder import UpperLayers

KERNELS = [Kernel(precision, "native") for precision in ("int8", "bfloat16", "float32")]
NATIVE = KERNELS[0]
SPLIT = 2
LIMITS = SlotLimits(max_rank=20, max_bottleneck=8, max_labels=2, dense_heads=False, dtype=torch.bfloat16)
needs_processor = pytest.mark.skipif(
    not (has_bfloat16() and torch.cpu.get_capabilities().get("avx512_vnni")),
    reason="the C++ kernels need AVX-512 with VNNI and bfloat16",
)
pytestmark = needs_processor


@pytest.fixture(autouse=True, scope="module")
def built() -> None:
    assert has_native(), "the C++ kernels are not compiled: run python runtime/build_kernels.py"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def upper_layers(**changes: object) -> UpperLayers:
    return UpperLayers(random_encoder(replace(POST_NORM, positions=600, **changes)), SPLIT)  # type: ignore[arg-type]


def random_adapter(
    config: EncoderConfig,
    seed: int,
    *,
    rank: int = 0,
    bias: bool = False,
    norms: bool = False,
    bottleneck: BottleneckPlacement | None = None,
) -> AdapterWeights:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random) * 0.2

    shapes = {name: config.matrix_shape(name) for name in MATRICES}
    layer = LayerAdapter(
        lora={n: LoraMatrix(normal(rank, d_in), normal(d_out, rank)) for n, (d_out, d_in) in shapes.items()}
        if rank
        else {},
        bias={n: normal(d_out) for n, (d_out, _) in shapes.items()} if bias else {},
        norms={n: (1 + normal(config.width), normal(config.width)) for n in NORMS} if norms else {},
        bottlenecks={
            place: Bottleneck(
                normal(5, config.width), normal(5), normal(config.width, 5), normal(config.width), "gelu",
                bottleneck,
            )
            for place in SUBLAYERS
        }
        if bottleneck
        else {},
    )  # fmt: skip
    head = Head("first", normal(2, config.width), normal(2))
    layers = dict.fromkeys(range(SPLIT, config.layers), layer)
    return AdapterWeights(TaskType.SEQUENCE_CLASSIFICATION, ("a", "b"), layers, head, "sha256:base")


def filled_pool(upper: UpperLayers, kernel: Kernel = NATIVE) -> tuple[SlotPool, list[AdapterWeights]]:
    """Return a pool with one adapter of each kind."""
    config = upper.config
    stored = [
        random_adapter(config, 0, rank=16, bias=True, norms=True),
        random_adapter(config, 1, rank=3),
        random_adapter(config, 2, bias=True),
        random_adapter(config, 3, norms=True),
        random_adapter(config, 4, rank=20, norms=True, bottleneck="parallel"),
        random_adapter(config, 5, bottleneck="sequential"),
        random_adapter(config, 6, rank=9, bias=True),
    ]
    pool = SlotPool(upper, len(stored), replace(LIMITS, dtype=kernel.slot_dtype))
    for slot, weights in enumerate(stored):
        pool.write(slot, weights)
    return pool, stored


def padded(lengths: Sequence[int], width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(len(lengths), max(lengths), width, generator=random)
    return hidden, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("kernel", KERNELS, ids=[kernel.name for kernel in KERNELS])
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
def test_rows_of_every_kind_are_close_to_the_reference(activation: str, heads: int, kernel: Kernel) -> None:
    upper = upper_layers(activation=activation, heads=heads)
    pool, stored = filled_pool(upper, kernel)
    slots = [*range(len(stored)), BARE, 0]
    lengths = [7, 1, 13, 40, 6, 11, 65, 2, 200]
    hidden, mask = padded(lengths, upper.config.width)
    sample = torch.randn(8, 16, upper.config.width)
    found = UpperExecutor(upper, pool, kernel, sample=sample).run(hidden, mask, slots)
    least, mean = {"int8": (0.985, 0.995), "bfloat16": (0.999, 0.9998), "float32": (0.999999, 0.999999)}[
        kernel.precision
    ]
    for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        expected = run_row(upper, None if slot == BARE else stored[slot], hidden[row], mask[row])[:length]
        cosine = torch.cosine_similarity(found[row, :length], expected, dim=-1)
        assert cosine.min() > least, (slot, length)
        assert cosine.mean() > mean, (slot, length)


@pytest.mark.parametrize("kernel", KERNELS, ids=[kernel.name for kernel in KERNELS])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), threads=st.integers(1, 3))
def test_a_row_is_the_same_in_every_batch(kernel: Kernel, data: st.DataObject, threads: int) -> None:
    upper = upper_layers()
    pool, stored = filled_pool(upper, kernel)
    slots = data.draw(st.lists(st.integers(BARE, len(stored) - 1), min_size=2, max_size=9))
    lengths = data.draw(st.lists(st.integers(1, 150), min_size=len(slots), max_size=len(slots)))
    hidden, mask = padded(lengths, upper.config.width)
    executor = UpperExecutor(upper, pool, kernel)
    torch.set_num_threads(threads)
    found = executor.run(hidden, mask, slots)
    torch.set_num_threads(1)
    for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        alone = executor.run(hidden[row : row + 1, :length], mask[row : row + 1, :length], [slot])
        assert torch.equal(found[row, :length], alone[0])


@pytest.mark.parametrize("kernel", KERNELS, ids=[kernel.name for kernel in KERNELS])
def test_rows_without_tokens_change_nothing(kernel: Kernel) -> None:
    upper = upper_layers()
    pool, stored = filled_pool(upper, kernel)
    slots = [*range(len(stored)), BARE]
    hidden, mask = padded([7] * len(slots), upper.config.width)
    executor = UpperExecutor(upper, pool, kernel)
    expected = executor.run(hidden, mask, slots)
    hidden, mask = hidden.repeat_interleave(2, dim=0), mask.repeat_interleave(2, dim=0)
    mask[::2] = False
    found = executor.run(hidden, mask, [slot for slot in slots for _ in range(2)])
    assert torch.equal(found[1::2], expected)


def test_a_large_batch_leaves_little_memory_taken() -> None:
    """Of 134 MB that the widened states take; other buffers are of 34 MB and less."""

    def taken() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    upper = upper_layers(ffn_width=1024, layers=SPLIT + 1)
    executor = UpperExecutor(upper, filled_pool(upper, KERNELS[2])[0], KERNELS[2])
    small, large = (padded([length] * 64, 64) for length in (8, 512))
    executor.run(*small, [BARE] * 64)
    before = taken()
    executor.run(*large, [BARE] * 64)
    assert taken() - before < 80e6


def multiply(
    product: Product, batch: Batch, x: Tensor, residual: Tensor | None = None, activation: int = 0
) -> Tensor:
    out = x.new_empty(len(x), product.matrix.d_out)
    added = None if residual is None else residual.data_ptr()
    matrix, lora = ctypes.byref(product.matrix), ctypes.byref(product.lora)
    library.load().hmi_product(batch.argument, matrix, lora, x.data_ptr(), added, activation, out.data_ptr())
    return out


def make_batch(lengths: Sequence[int], pool: SlotPool, places: Sequence[int]) -> Batch:
    return Batch([0, *accumulate(lengths)], places, pool)


@pytest.mark.parametrize("kernel", KERNELS, ids=[kernel.name for kernel in KERNELS])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_product_follows_the_formula(kernel: Kernel, data: st.DataObject) -> None:
    """x W' + bias + LoRA + residual; int8's only error is that of rounding inputs to 255 steps."""
    upper = upper_layers(ffn_width=data.draw(st.sampled_from([128, 1664])))
    pool, stored = filled_pool(upper, kernel)
    matrix = data.draw(st.sampled_from(["attention_output", "ffn_up", "ffn_down"]))
    slots = data.draw(st.lists(st.integers(0, len(stored) - 1), min_size=1, max_size=6))
    lengths = data.draw(st.lists(st.integers(1, 140), min_size=len(slots), max_size=len(slots)))
    layer = upper.layers[0]
    weight, bias = layer.get_submodule(matrix).weight, layer.get_submodule(matrix).bias
    product = Product(layer, matrix, 0, pool, kernel.precision, weight)  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(len(slots))
    x = torch.randn(sum(lengths), weight.shape[1], generator=random).to(kernel.dtype)  # type: ignore[index,misc]
    residual = torch.randn(len(x), len(weight), generator=random).to(kernel.dtype)  # type: ignore[arg-type]
    batch = make_batch(lengths, pool, slots)

    found = multiply(product, batch, x, residual).float()

    assert not batch.broken.any()
    start = 0
    for slot, length in zip(slots, lengths, strict=True):
        span = slice(start, start + length)
        start += length
        changes = stored[slot].layers[SPLIT]
        rows = x[span].float()
        expected = functional.linear(rows, weight, changes.bias.get(matrix, bias)) + residual[span].float()  # type: ignore[arg-type]
        if matrix in changes.lora:
            expected += rows @ changes.lora[matrix].a.t() @ changes.lora[matrix].b.t()
        error = (found[span] - expected).norm(dim=1) / expected.norm(dim=1)
        assert error.max() < {"int8": 0.03, "bfloat16": 0.01, "float32": 3e-6}[kernel.precision]


def test_products_of_bytes_are_exact() -> None:
    """Inputs and weights that are whole numbers of steps give the results of integer arithmetic."""
    upper = upper_layers()
    pool = SlotPool(upper, 0, LIMITS)
    random = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (64, 64), generator=random).float()
    weight[:, 0] = 127  # so that one level is one
    layer = upper.layers[0]
    layer.get_submodule("attention_output").bias.data.zero_()  # type: ignore[union-attr,operator]
    product = Product(layer, "attention_output", 0, pool, "int8", weight)  # type: ignore[arg-type]
    x = torch.randint(0, 64, (5, 64), generator=random).float()
    x[:, 1] = 255 - 64
    x[:, 2] = -64
    found = multiply(product, make_batch([5], pool, [pool.slots]), x.bfloat16())
    assert torch.equal(found, (x @ weight.t()).bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 64, 130, 512])
@pytest.mark.parametrize("head_width", [16, 32, 64, 96, 256])
def test_attention_follows_the_formula(head_width: int, length: int, dtype: torch.dtype) -> None:
    heads, lengths = 2, [3, length]
    width = heads * head_width
    qkv = torch.randn(sum(lengths), 3 * width, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = torch.empty(len(qkv), width, dtype=dtype)
    broken = torch.zeros(2, dtype=torch.uint8)
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    batch = library.Batch(rows=2, offsets=offsets.data_ptr(), broken=broken.data_ptr())
    library.load().hmi_attention(
        ctypes.byref(batch), int(dtype == torch.float32), qkv.data_ptr(), width, heads, out.data_ptr()
    )
    error = 0.02 if dtype == torch.bfloat16 else 2e-6
    for start, stop in pairwise(offsets):
        q, k, v = qkv[start:stop].float().view(-1, 3, heads, head_width).permute(1, 2, 0, 3)
        expected = functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
        torch.testing.assert_close(out[start:stop].float(), expected, atol=error, rtol=error)


def test_attention_takes_the_largest_of_scores_that_are_all_very_low() -> None:
    """What stands in for tokens after the last one is lower still."""
    qkv = torch.full((3, 48), 1e16)
    qkv[:, :16] = -1e16
    qkv[1, 16:32] *= 0.5  # the key of the highest score
    qkv[:, 32:] = torch.tensor([[1.0], [2.0], [3.0]])
    out = torch.empty(3, 16)
    offsets = torch.tensor([0, 3], dtype=torch.int32)
    batch = library.Batch(1, offsets.data_ptr(), None, None, None, None)
    library.load().hmi_attention(ctypes.byref(batch), 1, qkv.data_ptr(), 16, 1, out.data_ptr())
    assert torch.equal(out, torch.full((3, 16), 2.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_norms_are_each_rows_own(dtype: torch.dtype) -> None:
    upper = upper_layers()
    pool, stored = filled_pool(upper)
    x = (torch.randn(12, 64, generator=torch.Generator().manual_seed(1)) * 5 + 1).to(dtype)
    batch = make_batch([5, 7], pool, [0, pool.slots])
    out = torch.empty_like(x)
    norms, eps = pool.tensor("ffn_norm")[1], upper.config.norm_eps
    floats = int(dtype == torch.float32)
    shared = library.Norms(norms.data_ptr(), eps)
    library.load().hmi_norm(batch.argument, floats, ctypes.byref(shared), x.data_ptr(), 64, out.data_ptr())
    own = stored[0].layers[SPLIT + 1].norms["ffn_norm"]
    base = upper.layers[1].get_submodule("ffn_norm")
    error = 0.02 if dtype == torch.bfloat16 else 1e-6
    for rows, (weight, bias) in ((slice(5), own), (slice(5, 12), (base.weight, base.bias))):
        expected = functional.layer_norm(x[rows].float(), (64,), weight, bias, eps)  # type: ignore[arg-type]
        torch.testing.assert_close(out[rows].float(), expected, atol=error, rtol=error)


@pytest.mark.parametrize(
    "changes", [{"heads": 8}, {"width": 96, "heads": 6}, {"ffn_width": 96}, {"gated": True}]
)
def test_models_whose_sizes_do_not_fit_run_on_other_kernels(changes: dict[str, int]) -> None:
    assert not runs_model(NATIVE, upper_layers(**changes))
    assert runs_model(NATIVE, upper_layers())


def test_activations_are_exact() -> None:
    """A product of zeros gives its bias, so that every number can be activated."""
    for activation in ("gelu", "gelu_new", "relu", "silu"):
        upper = upper_layers(activation=activation)
        pool = SlotPool(upper, 0, replace(LIMITS, dtype=torch.float32))
        numbers = torch.linspace(-12, 12, upper.config.ffn_width)
        upper.layers[0].get_submodule("ffn_up").bias.data.copy_(numbers)  # type: ignore[union-attr,operator]
        weight = torch.ones(upper.config.ffn_width, 64)
        product = Product(upper.layers[0], "ffn_up", 0, pool, "float32", weight)  # type: ignore[arg-type]
        code = {"gelu": 1, "gelu_new": 2, "relu": 3, "silu": 4}[activation]
        found = multiply(product, make_batch([1], pool, [pool.slots]), torch.zeros(1, 64), activation=code)
        torch.testing.assert_close(found, ACTIVATIONS[activation](numbers)[None], atol=2e-6, rtol=2e-6)


def test_the_sample_changes_the_rounding_alone() -> None:
    upper = upper_layers()
    pool, _ = filled_pool(upper)
    hidden, mask = padded([9, 9], 64)
    encoder = random_encoder(POST_NORM)
    with_sample = UpperExecutor(upper, pool, NATIVE, sample=calibration_sample(encoder, SPLIT))
    found = with_sample.run(hidden, mask, [0, BARE])
    other = UpperExecutor(upper, pool, NATIVE).run(hidden, mask, [0, BARE])
    assert not torch.equal(found, other)
    assert torch.cosine_similarity(found, other, dim=-1).min() > 0.98


def test_the_sources_compile_without_warnings(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    assert compiler, "there is no C++ compiler: install g++"
    sources = sorted(str(file) for file in build_kernels.FOLDER.glob("*.cpp"))
    for source in sources:
        done = subprocess.run(
            [compiler, *build_kernels.FLAGS, "-O0", "-Werror", "-c", source, "-o", str(tmp_path / "out.o")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
