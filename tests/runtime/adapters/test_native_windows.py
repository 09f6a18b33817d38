"""Windows computed by the C++ kernels equal those of the layers themselves."""

import copy

import pytest
import torch
from support_encoders import ARCHITECTURES, POST_NORM, random_encoder

from hmi_runtime.adapters.kernels import has_native
from hmi_runtime.adapters.native.windows import pack_windows
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.windows import ABSENT


def domain_layers(architecture: str) -> DomainLayers:
    encoder = random_encoder(ARCHITECTURES[architecture])
    layers = DomainLayers.from_encoder(encoder, 2, bridge_heads=2, bridge_head_size=8)
    return layers.requires_grad_(False).eval()


def windows(count: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(count)
    found = torch.randint(3, POST_NORM.vocab_size, (count, 3), generator=random)
    found[::3, 0] = ABSENT
    found[::5, 2] = ABSENT
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [0, 1, 7, 300])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_layers_give_the_same_windows(architecture: str, count: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    layers = domain_layers(architecture)
    packed = copy.deepcopy(layers)
    pack_windows(packed)
    asked = windows(count)
    found = packed.window_outputs(asked)
    torch.set_num_threads(before)
    torch.testing.assert_close(found, layers.window_outputs(asked), atol=2e-5, rtol=1e-5)
    assert torch.equal(found[asked == ABSENT], torch.zeros_like(found[asked == ABSENT]))


@pytest.mark.skipif(not has_native(), reason="the C++ kernels need AVX-512 with VNNI and bfloat16")
def test_packed_layers_free_their_matrices() -> None:
    layers = domain_layers("post-norm")
    before = sum(parameter.numel() for parameter in layers.layers.parameters())
    pack_windows(layers)
    assert sum(parameter.numel() for parameter in layers.layers.parameters()) < before / 20
