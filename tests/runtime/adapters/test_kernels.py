"""Which kernels a machine has, and how one is tried before it serves."""

import pytest
import torch
from support_encoders import POST_NORM, random_encoder

from hmi_api.errors import InvalidInput
from hmi_runtime.adapters.executor import UpperExecutor, trial_executor
from hmi_runtime.adapters.kernels import FLOAT32, Kernel, available_kernels, default_kernel
from hmi_runtime.adapters.slot_pool import BARE, SlotPool
from hmi_runtime.models.encoder import UpperLayers

CPU = torch.device("cpu")


def test_a_kernels_name_can_be_read_back() -> None:
    for kernel in available_kernels(CPU):
        assert Kernel.parse(kernel.name) == kernel


@pytest.mark.parametrize("name", ["int8", "int4/onednn", "int8/fast", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="int8/onednn"):
        Kernel.parse(name)


def test_every_available_kernel_can_be_tried() -> None:
    torch.set_num_threads(1)
    encoder = random_encoder(POST_NORM)
    upper = UpperLayers(encoder, 1)
    sample = torch.randn(4, 6, POST_NORM.width, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 6, dtype=torch.bool)
    expected = upper(sample, mask)
    for kernel in available_kernels(CPU):
        found = trial_executor(upper, kernel, sample).run(sample, mask, [BARE] * 4)
        assert found.dtype == torch.float32
        assert torch.cosine_similarity(found, expected, dim=-1).min() > 0.995, kernel


def test_float32_is_available_everywhere() -> None:
    assert FLOAT32 in available_kernels(CPU)
    assert FLOAT32 in available_kernels(torch.device("cuda"))
    assert default_kernel("float32", "cuda") == FLOAT32


def test_a_kernel_that_the_machine_lacks_is_refused() -> None:
    upper = UpperLayers(random_encoder(POST_NORM), 1)
    with pytest.raises(InvalidInput, match="PrecisionUnsupported"):
        default_kernel("int8", "cuda")
    with pytest.raises(InvalidInput, match="PrecisionUnsupported"):
        UpperExecutor(upper, SlotPool(upper, 1), Kernel("int8", "torch"))
