"""The window-local model: what a window sees, and how positions are composed from windows."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support_encoders import ARCHITECTURES, POST_NORM, random_encoder
from torch import Tensor

from hmi_api.errors import InvalidInput
from hmi_runtime.adapters.kernels import has_bfloat16, has_native
from hmi_runtime.models import packed_bridge
from hmi_runtime.models.architecture import EncoderConfig
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.encoder import Encoder, UpperLayers
from hmi_runtime.models.packing import positions_of
from hmi_runtime.models.windows import ABSENT, compose, trigrams

CONFIG = POST_NORM


def encoder(config: EncoderConfig = CONFIG) -> Encoder:
    return random_encoder(config, seed=3)


def layers(config: EncoderConfig = CONFIG, *, heads: int = 2) -> DomainLayers:
    """Layers in which every parameter has an effect; a new bridge and new gates would hide most."""
    made = DomainLayers.from_encoder(encoder(config), 2, bridge_heads=heads, bridge_head_size=8)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made.requires_grad_(False)


def texts(lengths: list[int], pad_to: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    ids = torch.zeros(len(lengths), pad_to, dtype=torch.int64)
    mask = torch.zeros(len(lengths), pad_to, dtype=torch.bool)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(3, CONFIG.vocab_size, (length,), generator=generator)
        mask[row, :length] = True
    return ids, mask


def test_windows_at_the_edges_lack_a_neighbour() -> None:
    ids = torch.tensor([[1, 7, 8, 2, 0, 0]])
    mask = torch.tensor([[True, True, True, True, False, False]])
    assert trigrams(ids, mask)[0].tolist() == [
        [ABSENT, 1, 7],
        [1, 7, 8],
        [7, 8, 2],
        [8, 2, ABSENT],
        [ABSENT, 0, ABSENT],
        [ABSENT, 0, ABSENT],
    ]


def test_composition_takes_each_output_from_the_right_window() -> None:
    parts = torch.randn(2, 5, 3, 4)
    expected = torch.zeros(2, 5, 4)
    for row in range(2):
        for i in range(5):
            expected[row, i] = parts[row, i, 1]
            if i + 1 < 5:
                expected[row, i] += parts[row, i + 1, 0]
            if i > 0:
                expected[row, i] += parts[row, i - 1, 2]
    torch.testing.assert_close(compose(parts), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), extra=st.integers(0, 6))
def test_padding_and_other_rows_change_nothing(architecture: str, lengths: list[int], extra: int) -> None:
    model = layers(ARCHITECTURES[architecture])
    ids, mask = texts(lengths, max(lengths) + extra)
    together = model.represent(ids, mask)
    for row, length in enumerate(lengths):
        alone = model.represent(ids[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(together[row, :length], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_a_bridge_a_position_sees_two_tokens_each_way(architecture: str) -> None:
    model = layers(ARCHITECTURES[architecture], heads=0)
    ids, mask = texts([9], 9)
    before = model.represent(ids, mask)
    changed = ids.clone()
    changed[0, 4] = (ids[0, 4] - 3 + 1) % 30 + 3
    moved = (model.represent(changed, mask) - before).abs().amax(dim=2)[0] > 1e-6
    assert moved.tolist() == [False, False, True, True, True, True, True, False, False]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_through_the_bridge_distant_tokens_have_an_effect(architecture: str) -> None:
    model = layers(ARCHITECTURES[architecture])
    ids, mask = texts([9], 9)
    changed = ids.clone()
    changed[0, 0] = (ids[0, 0] - 3 + 1) % 30 + 3
    difference = model.represent(changed, mask) - model.represent(ids, mask)
    assert difference[0, 8].abs().max() > 1e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_absent_tokens_have_no_effect_and_no_output(architecture: str) -> None:
    parts = layers(ARCHITECTURES[architecture]).window_outputs(
        torch.tensor([[ABSENT, 5, 6], [ABSENT, 5, ABSENT]])
    )
    assert parts[0, 0].abs().max() == 0
    assert parts[1, [0, 2]].abs().max() == 0
    assert parts[1, 1].abs().max() > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_layers_are_loaded_unchanged(architecture: str, tmp_path: Path) -> None:
    config = ARCHITECTURES[architecture]
    model = layers(config)
    model.save(tmp_path)
    again = DomainLayers.load(tmp_path, encoder(config))
    ids, mask = texts([6, 3], 6)
    torch.testing.assert_close(again.represent(ids, mask), model.represent(ids, mask))
    assert "word" not in again.state_dict()


def test_layers_of_another_base_are_refused(tmp_path: Path) -> None:
    layers().save(tmp_path)
    other = Encoder(EncoderConfig(**{**CONFIG.__dict__, "vocab_size": 41}))
    with pytest.raises(InvalidInput, match="LayersForAnotherBase"):
        DomainLayers.load(tmp_path, other)


@pytest.mark.parametrize("split", [0, 4, 9])
def test_a_split_must_leave_layers_on_both_sides(split: int) -> None:
    with pytest.raises(InvalidInput, match="choose 1 to 3"):
        DomainLayers.from_encoder(encoder(), split, bridge_heads=0, bridge_head_size=8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_upper_layers_continue_after_the_split(architecture: str) -> None:
    base = encoder(ARCHITECTURES[architecture])
    ids, mask = texts([7, 4], 7)
    states = base.hidden_states(ids, mask)
    upper = UpperLayers(base, 2)
    for ours, theirs in zip(upper.hidden_states(states[2], mask), states[3:], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("heads", [0, 2])
@pytest.mark.parametrize("lengths", [[1], [7], [9, 4, 1], [3, 3, 4], [12] * 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_tokens_without_padding_are_bridged_as_padded_ones(
    heads: int, lengths: list[int], dtype: torch.dtype, tolerance: float
) -> None:
    if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no products in bfloat16")
    trained, served = layers(heads=heads), layers(heads=heads)
    ids, mask = texts(lengths, max(lengths))
    with torch.no_grad():
        expected = trained.represent(ids, mask)[mask]
        outputs = served.window_outputs(trigrams(ids, mask)[mask])
        found = served.combine_tokens(outputs, lengths, dtype)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    assert served.state_dict().keys() == trained.state_dict().keys()


@pytest.mark.parametrize("lengths", [[1], [9, 4, 1], [40, 17, 33, 2]])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_attention_by_the_kernel_equals_that_by_torch(
    lengths: list[int], dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_native():
        pytest.skip("the C++ kernels do not run here")
    bridge = layers().bridge
    assert bridge is not None
    x, positions = torch.randn(sum(lengths), CONFIG.width), torch.from_numpy(positions_of(lengths) % 8)
    native = packed_bridge.PackedBridge(bridge, dtype)
    monkeypatch.setattr(packed_bridge, "has_native", lambda: False)
    other = packed_bridge.PackedBridge(bridge, dtype)
    assert (native._is_native, other._is_native) == (True, False)
    with torch.no_grad():
        expected, found = (one(x.clone(), positions, lengths) for one in (other, native))
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.skipif(not has_bfloat16(), reason="torch packs bfloat16 on CPUs with AVX-512 alone")
def test_a_bridge_whose_values_may_overflow_is_computed_by_torch() -> None:
    bridge = layers().bridge
    assert bridge is not None
    bridge.qkv.bias[0] = 1e20
    assert not packed_bridge.PackedBridge(bridge, torch.bfloat16)._is_native


@pytest.mark.parametrize("scores", [1, 60, 2**20])
def test_long_texts_are_bridged_in_parts(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_bridge, "_SCORES_AT_ONCE", scores)
    monkeypatch.setattr(packed_bridge, "has_native", lambda: False)
    lengths, model = [4, 5, 5, 9, 10], layers()
    ids, mask = texts(lengths, max(lengths))
    with torch.no_grad():
        expected = model.represent(ids, mask)[mask]
        found = model.combine_tokens(model.window_outputs(trigrams(ids, mask)[mask]), lengths)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_outputs_outside_of_a_text_have_no_effect_on_its_neighbour() -> None:
    model, outputs = layers(), torch.randn(7, 3, CONFIG.width)
    with torch.no_grad():
        alone = model.combine_tokens(outputs[:4].clone(), [4])
        together = model.combine_tokens(outputs.clone(), [4, 3])
    torch.testing.assert_close(together[:4], alone, atol=1e-5, rtol=1e-5)
