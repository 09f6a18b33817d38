"""Adapter files: saved ones are loaded unchanged, and damaged or unsuitable ones refused with a reason."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hmi_api.errors import Damaged, InvalidInput
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.adapters.checks import check_adapter
from hmi_runtime.adapters.weights import (
    ADAPTER_FILE,
    AdapterWeights,
    Bottleneck,
    Dense,
    Head,
    LayerAdapter,
    LoraMatrix,
)
from hmi_runtime.models.architecture import EncoderConfig

WIDTH = 8
CONFIG = EncoderConfig(
    family="bert", layers=4, width=WIDTH, heads=2, ffn_width=12, vocab_size=30, positions=16, segments=1,
    norm_eps=1e-12, activation="gelu", pad_id=0, cls_id=1, sep_id=2,
)  # fmt: skip


def adapter() -> AdapterWeights:
    """An adapter with every kind of tensor."""
    layer = LayerAdapter(
        lora={"ffn_up": LoraMatrix(torch.randn(2, WIDTH), torch.randn(12, 2))},
        bias={"ffn_up": torch.randn(12)},
        norms={"ffn_norm": (torch.randn(WIDTH), torch.randn(WIDTH))},
        bottlenecks={
            "ffn": Bottleneck(
                torch.randn(3, WIDTH),
                torch.randn(3),
                torch.randn(WIDTH, 3),
                torch.randn(WIDTH),
                "gelu",
                "sequential",
            )
        },
    )
    dense = Dense(torch.randn(WIDTH, WIDTH), torch.randn(WIDTH), "relu")
    return AdapterWeights(
        task=TaskType.SEQUENCE_CLASSIFICATION,
        labels=("no", "yes"),
        layers={2: layer, 3: LayerAdapter()},
        head=Head("first", torch.randn(2, WIDTH), torch.randn(2), dense),
        base_digest="sha256:base",
        layers_digest="sha256:layers",
    )


def test_a_saved_adapter_is_loaded_as_stored(tmp_path: Path) -> None:
    saved = adapter().as_stored()
    saved.save(tmp_path)
    loaded = AdapterWeights.load(tmp_path)
    check_adapter(loaded, CONFIG, 2, base_digest="sha256:base", layers_digest="sha256:layers")
    assert loaded.config() == saved.config()
    assert loaded.nbytes == saved.nbytes
    expected = dict(saved.named_tensors())
    for name, tensor in loaded.named_tensors():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected.pop(name))
    assert not expected


def test_the_same_adapter_gives_the_same_bytes(tmp_path: Path) -> None:
    saved = adapter()
    saved.save(tmp_path / "one")
    AdapterWeights.load(tmp_path / "one").save(tmp_path / "two")
    assert (tmp_path / "one" / ADAPTER_FILE).read_bytes() == (tmp_path / "two" / ADAPTER_FILE).read_bytes()


def test_the_manifest_config_gives_sizes_without_reading_tensors() -> None:
    made = adapter()
    assert (made.rank, made.bottleneck_width) == (2, 3)
    assert made.nbytes == 4 * sum(tensor.numel() for _, tensor in made.named_tensors())


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"\x80\x04" + data, lambda _: b""])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    adapter().save(tmp_path)
    path = tmp_path / ADAPTER_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Damaged, match="AdapterUnreadable"):
        AdapterWeights.load(tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="AdapterUnreadable"):
        AdapterWeights.load(tmp_path)


def test_another_base_and_another_domain_are_refused() -> None:
    with pytest.raises(InvalidInput, match="AdapterForAnotherBase"):
        check_adapter(adapter(), CONFIG, 2, base_digest="sha256:other")
    with pytest.raises(InvalidInput, match="AdapterForAnotherDomain"):
        check_adapter(adapter(), CONFIG, 2, layers_digest="sha256:other")


def test_an_import_names_no_layers_and_fits_any_domain() -> None:
    check_adapter(replace(adapter(), layers_digest=None), CONFIG, 2, layers_digest="sha256:layers")


def zero_lora(inner: int, outer: int) -> LoraMatrix:
    return LoraMatrix(torch.zeros(2, inner), torch.zeros(outer, 2))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layers": {1: LayerAdapter()}}, "AdapterBelowSplit"),
        ({"layers": {4: LayerAdapter()}}, "AdapterShape"),
        ({"layers": {2: LayerAdapter(bias={"query": torch.zeros(9)})}}, "AdapterShape"),
        ({"layers": {2: LayerAdapter({"query": zero_lora(9, 8)})}}, "AdapterShape"),
        ({"layers": {2: LayerAdapter({"rest": zero_lora(8, 8)})}}, "AdapterShape"),
        ({"layers": {2: LayerAdapter(bias={"query": torch.full((8,), torch.nan)})}}, "AdapterNotFinite"),
        ({"labels": ("one",)}, "AdapterLabels"),
        ({"labels": ("same", "same")}, "AdapterLabels"),
        ({"task": TaskType.TOKEN_CLASSIFICATION}, "AdapterShape"),
        ({"head": Head("first_and_mean", torch.zeros(2, WIDTH), torch.zeros(2))}, "AdapterShape"),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidInput) as error:
        check_adapter(replace(adapter(), **changes), CONFIG, 2)  # type: ignore[arg-type]
    assert error.value.reason == reason
