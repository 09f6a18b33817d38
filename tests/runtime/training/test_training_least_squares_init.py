"""The initial gates and positions of distillation: the least-squares problem, and the loss after it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hmi_api.resources.domain import DomainTraining
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.source import BaseModel
from hmi_runtime.models.windows import compose, contributions
from hmi_runtime.training.distillation import distill, evaluate_distillation
from hmi_runtime.training.least_squares_init import LeastSquaresInit
from hmi_runtime.training.token_dataset import TokenDataset

POSITIONS, WIDTH = 9, 4


def batches(seed: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """Parts (B, T, 3, D), zero at padding, and masks (B, T)."""
    random = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        lengths = torch.randint(2, POSITIONS, (6,), generator=random)
        mask = torch.arange(POSITIONS - 1)[None] < lengths[:, None]
        parts = torch.randn(6, POSITIONS - 1, 3, WIDTH, generator=random) * mask[:, :, None, None]
        made.append((parts, mask))
    return made


def gated(parts: Tensor, mask: Tensor, gates: Tensor, positions: Tensor) -> Tensor:
    """The states of a student with these gates for the real tokens, (N, D)."""
    composed: Tensor = compose(parts * gates) + positions[: mask.shape[1]]
    return composed[mask]


def test_contributions_add_up_to_the_composed_vector() -> None:
    parts = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(contributions(parts).sum(dim=2), compose(parts))


def test_the_gates_of_a_gated_teacher_are_found() -> None:
    random = torch.Generator().manual_seed(1)
    gates = torch.randn(3, WIDTH, generator=random)
    positions = torch.randn(POSITIONS, WIDTH, generator=random)
    point = LeastSquaresInit(POSITIONS, WIDTH)
    for parts, mask in batches(2, 200):
        point.add(parts, gated(parts, mask, gates, positions), mask)
    found_gates, found_positions = point.solve()
    assert torch.allclose(found_gates, gates, atol=0.01)
    # A position that never occurs gets the mean of the others.
    assert torch.allclose(found_positions[:4], positions[:4], atol=0.05)
    assert found_positions[POSITIONS - 1].abs().max() < positions.abs().max()


def test_gates_are_those_of_least_squares_with_a_constant_for_each_position() -> None:
    point = LeastSquaresInit(POSITIONS, WIDTH)
    rows, targets = [], []
    for number, (parts, mask) in enumerate(batches(3, 5)):
        teacher = torch.randn(int(mask.sum()), WIDTH, generator=torch.Generator().manual_seed(number))
        point.add(parts, teacher, mask)
        where = torch.arange(mask.shape[1]).expand(mask.shape)[mask]
        dummies = torch.nn.functional.one_hot(where, POSITIONS).float()
        x = contributions(parts)[mask]
        rows.append((x, dummies))
        targets.append(teacher)
    gates, _ = point.solve()
    for dimension in range(WIDTH):
        table = torch.cat([torch.cat([x[:, :, dimension], d], dim=1) for x, d in rows])
        target = torch.cat(targets)[:, dimension : dimension + 1]
        expected = torch.linalg.lstsq(table, target, driver="gelsd").solution[:3, 0]
        assert torch.allclose(gates[:, dimension], expected, atol=2e-3)


def test_a_part_that_is_always_zero_gets_no_weight() -> None:
    point = LeastSquaresInit(POSITIONS, WIDTH)
    for parts, mask in batches(4, 3):
        parts[:, :, 2] = 0
        point.add(parts, torch.ones(int(mask.sum()), WIDTH), mask)
    gates, positions = point.solve()
    assert torch.equal(gates[2], torch.zeros(WIDTH))
    assert torch.isfinite(gates).all()
    assert torch.isfinite(positions).all()


@pytest.mark.parametrize("back_off", [False, True])
def test_the_loss_before_the_first_step_is_lower(
    back_off: bool, base: BaseModel, sentences: list[str], tmp_path: Path
) -> None:
    encoder, dataset = base.encoder(), TokenDataset.write(tmp_path / "corpus", sentences, base.tokenizer, 16)
    losses = []
    for fresh in (False, True):
        layers = DomainLayers.from_encoder(encoder, 2, bridge_heads=2, bridge_head_size=8)
        config = DomainTraining(steps=0, batch_size=8)
        distill(
            encoder,
            layers,
            dataset,
            config,
            back_off=back_off,
            checkpoint_path=tmp_path / "none",
            fresh=fresh,
        )
        losses.append(evaluate_distillation(encoder, layers, dataset)["distillation_loss"])
    assert losses[1] < 0.9 * losses[0]
