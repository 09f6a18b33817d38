"""Distillation: its loss, the order of rows, and that a killed run resumes to the same bits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support_encoders import FAMILIES
from torch import Tensor

from hmi_api.resources.domain import DomainTraining
from hmi_runtime.models.architecture import AttentionContext
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.source import BaseModel
from hmi_runtime.models.windows import ABSENT, trigrams
from hmi_runtime.training.distillation import (
    Distiller,
    back_off_at_random,
    distill,
    distillation_loss,
    evaluate_distillation,
    represent_windows,
)
from hmi_runtime.training.optim import BatchSampler, learning_rate_factor
from hmi_runtime.training.token_dataset import TokenDataset


class Killed(Exception):
    """Simulates a process that is killed between two steps."""


@pytest.fixture
def dataset(base: BaseModel, sentences: list[str], tmp_path: Path) -> TokenDataset:
    return TokenDataset.write(tmp_path / "corpus", sentences, base.tokenizer, 16)


def start(base: BaseModel) -> DomainLayers:
    return DomainLayers.from_encoder(base.encoder(), 2, bridge_heads=2, bridge_head_size=8)


def perturbed(base: BaseModel) -> DomainLayers:
    layers = start(base)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return layers


def test_windows_are_represented_like_the_texts_that_they_come_from(
    base: BaseModel, dataset: TokenDataset
) -> None:
    layers = perturbed(base)
    ids, mask = dataset.batch([0, 5, 8, 8], base.config.pad_id)
    expected = layers.represent(ids, mask)
    found = represent_windows(layers, trigrams(ids, mask), mask)
    assert torch.allclose(found[mask], expected[mask], atol=1e-5)


def test_the_loss_equals_its_formula(base: BaseModel, dataset: TokenDataset) -> None:
    layers, encoder = perturbed(base), base.encoder()
    ids, mask = dataset.batch([1, 7, 8], base.config.pad_id)
    found = Distiller(encoder, layers).loss(ids, mask, trigrams(ids, mask))
    teacher = encoder.hidden_states(ids, mask)
    x = layers.represent(ids, mask)
    expected = 0.5 * _error(x, teacher[2], mask)
    for index in (2, 3):
        bias = torch.zeros(mask.shape).masked_fill(~mask, -1e30)[:, None, None]
        x = encoder.layers[index](x, AttentionContext(bias))
        expected = expected + _error(x, teacher[index + 1], mask)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def _error(ours: Tensor, theirs: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the variance, one number at a time."""
    values = [float(v) for row, seen in zip(theirs, mask, strict=True) for v in row[seen].flatten()]
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    squared = ((ours - theirs) ** 2)[mask].sum() / len(values)
    return squared / variance


def test_a_perfect_student_has_no_loss() -> None:
    states = [torch.randn(6, 4, generator=torch.Generator().manual_seed(1)) for _ in range(3)]
    assert distillation_loss(states, states).item() == 0.0


@pytest.mark.parametrize("base_folder", FAMILIES, indirect=True)
def test_training_lowers_the_loss_on_held_out_rows(
    base: BaseModel, dataset: TokenDataset, tmp_path: Path
) -> None:
    layers, encoder = start(base), base.encoder()
    before = evaluate_distillation(encoder, layers, dataset)
    config = DomainTraining(steps=60, batch_size=8, learning_rate=3e-3)
    distill(encoder, layers, dataset, config, checkpoint_path=tmp_path / "checkpoint")
    after = evaluate_distillation(encoder, layers, dataset)
    assert after["distillation_loss"] < 0.95 * before["distillation_loss"]
    assert after["cosine_at_output"] > before["cosine_at_output"]


@pytest.mark.parametrize("back_off", [False, True])
@pytest.mark.parametrize("killed_at", [1, 4, 9])
def test_a_killed_training_resumes_to_the_same_bits(
    back_off: bool, killed_at: int, base: BaseModel, dataset: TokenDataset, tmp_path: Path
) -> None:
    config = DomainTraining(steps=10, batch_size=7, seed=3)
    encoder = base.encoder()
    whole = start(base)
    distill(encoder, whole, dataset, config, back_off=back_off, checkpoint_path=tmp_path / "whole")

    def kill(step: int, steps: int, metrics: dict[str, float]) -> None:
        if step == killed_at:
            raise Killed

    options: Any = {"back_off": back_off, "checkpoint_path": tmp_path / "parts", "checkpoint_seconds": 0}
    with pytest.raises(Killed):
        distill(encoder, start(base), dataset, config, **options, progress=kill)
    resumed = start(base)
    distill(encoder, resumed, dataset, config, **options)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_layers_depend_on_the_seed(base: BaseModel, dataset: TokenDataset, tmp_path: Path) -> None:
    made = []
    for seed in (0, 0, 1):
        layers = start(base)
        config = DomainTraining(steps=3, batch_size=8, seed=seed)
        distill(base.encoder(), layers, dataset, config, checkpoint_path=tmp_path / f"{len(made)}")
        made.append(layers.gates.clone())
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_backing_off_keeps_the_centre_and_shortens_a_share_of_windows() -> None:
    windows = torch.arange(3 * 4000).view(40, 100, 3)
    cut = back_off_at_random(windows, torch.Generator().manual_seed(0))
    assert torch.equal(cut[..., 1], windows[..., 1])
    assert torch.equal(cut[cut != ABSENT], windows[cut != ABSENT])
    gone = cut == ABSENT
    left, right, both = (
        gone[..., 0] & ~gone[..., 2],
        ~gone[..., 0] & gone[..., 2],
        gone[..., 0] & gone[..., 2],
    )
    for share in (left, right, both):
        assert share.float().mean().item() == pytest.approx(0.1, abs=0.02)


@given(
    rows=st.integers(1, 70), batch=st.integers(1, 9), epochs=st.integers(1, 3), seed=st.integers(0, 2**31 - 1)
)
def test_every_row_occurs_once_an_epoch(rows: int, batch: int, epochs: int, seed: int) -> None:
    numbers = np.arange(100, 100 + rows)
    order = BatchSampler(numbers, numbers % 7, batch, seed)
    for epoch in range(epochs):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        seen = [int(row) for step in steps for row in order.rows_of(step)]
        assert sorted(seen) == numbers.tolist()


def test_the_learning_rate_warms_up_and_decays() -> None:
    factors = [learning_rate_factor(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == factors[10] == 1.0
    assert factors == factors[:10] + sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(1 / 90)
