"""The distillation after compression restores predictions and changes nothing else."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support_encoders import ARCHITECTURES, random_encoder
from torch import Tensor

from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.adapters.compression import Decomposition, importance
from hmi_runtime.adapters.heads import HeadModule
from hmi_runtime.adapters.lora import attach_adapter, export_adapter
from hmi_runtime.adapters.reference import run_layers
from hmi_runtime.adapters.weights import LayerAdapter
from hmi_runtime.models.encoder import UpperLayers
from hmi_runtime.training.compression import distill_compressed, kl_divergence
from hmi_runtime.training.fine_tuning import TaskModel
from hmi_runtime.training.token_dataset import RowIndices

SPLIT = 2
TASKS = [TaskType.SEQUENCE_CLASSIFICATION, TaskType.TOKEN_CLASSIFICATION]


@dataclass(frozen=True)
class Rows:
    """Random states without labels."""

    states: Tensor  # (R, T, D)
    mask: Tensor  # (R, T)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self.mask.sum(1).numpy()

    def batch(self, numbers: RowIndices) -> tuple[Tensor, Tensor]:
        return self.states[numbers], self.mask[numbers]

    def loss(self, logits: Tensor, numbers: RowIndices) -> Tensor:
        raise AssertionError("the distillation uses no labels")


@dataclass(frozen=True)
class Setup:
    base: UpperLayers
    tuned: TaskModel[UpperLayers]
    rows: Rows

    def cut(self, rank: int) -> dict[int, LayerAdapter]:
        weights = importance(self.tuned.body, self.tuned.eval(), [self.rows.batch(range(64))])
        return Decomposition(self.tuned.body, self.base, weights, rank).cut(rank)

    def distance(self, layers: dict[int, LayerAdapter]) -> float:
        states, mask = self.rows.batch(range(64))
        with torch.no_grad():
            given = self.tuned.head(run_layers(self.base, layers, states, mask), mask)
            return kl_divergence(given, self.tuned(states, mask), mask).item()


@pytest.fixture(params=ARCHITECTURES)
def setup(request: pytest.FixtureRequest) -> Setup:
    config = ARCHITECTURES[request.param]
    task = getattr(request.node, "callspec").params.get("task", TASKS[0])  # noqa: B009 - untyped in pytest
    generator = torch.Generator().manual_seed(4)
    tuned = UpperLayers(random_encoder(config), SPLIT)
    with torch.no_grad():
        for parameter in tuned.layers.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    states = torch.randn(64, 6, config.width, generator=generator)
    mask = torch.arange(6) < torch.randint(2, 7, (64, 1), generator=generator)
    head = HeadModule(config.width, 3, task)
    with torch.no_grad():
        head.weight.mul_(30)  # so that predictions differ clearly between labels
    return Setup(UpperLayers(random_encoder(config), SPLIT), TaskModel(tuned, head), Rows(states, mask))


def fresh(setup: Setup) -> UpperLayers:
    return UpperLayers(random_encoder(setup.base.config), SPLIT)


@pytest.mark.parametrize("task", TASKS)
def test_distillation_brings_predictions_closer_to_the_tuned_model(setup: Setup, task: TaskType) -> None:
    cut = setup.cut(4)
    distilled = distill_compressed(fresh(setup), cut, setup.tuned, setup.rows)
    assert setup.distance(distilled) < 0.8 * setup.distance(cut)
    assert {index: layer.lora.keys() for index, layer in distilled.items()} == {
        index: layer.lora.keys() for index, layer in cut.items()
    }
    assert all(matrix.rank == 4 for layer in distilled.values() for matrix in layer.lora.values())


def test_distillation_does_not_change_the_tuned_model_or_the_compressed_adapter(setup: Setup) -> None:
    cut = setup.cut(4)
    kept = [matrix.b.clone() for layer in cut.values() for matrix in layer.lora.values()]
    before = {name: tensor.clone() for name, tensor in setup.tuned.state_dict().items()}
    distill_compressed(fresh(setup), cut, setup.tuned, setup.rows)
    assert all(torch.equal(tensor, before[name]) for name, tensor in setup.tuned.state_dict().items())
    after = [matrix.b for layer in cut.values() for matrix in layer.lora.values()]
    assert all(map(torch.equal, after, kept))


def test_a_seed_gives_the_same_adapter(setup: Setup) -> None:
    first, second = (
        distill_compressed(
            fresh(setup),
            setup.cut(4),
            setup.tuned,
            setup.rows,
            seed=3,
        )
        for _ in range(2)
    )
    for index, layer in first.items():
        for name, matrix in layer.lora.items():
            assert torch.equal(matrix.a, second[index].lora[name].a)
            assert torch.equal(matrix.b, second[index].lora[name].b)


def test_an_attached_adapter_computes_the_same_and_exports_the_same(setup: Setup) -> None:
    cut, upper = setup.cut(4), fresh(setup)
    attach_adapter(upper, cut)
    states, mask = setup.rows.batch(range(5))
    torch.testing.assert_close(
        upper(states, mask)[mask],
        run_layers(setup.base, cut, states, mask)[mask],
        atol=1e-5,
        rtol=1e-5,
    )
    torch.testing.assert_close(
        run_layers(setup.base, export_adapter(upper), states, mask)[mask],
        run_layers(setup.base, cut, states, mask)[mask],
        atol=1e-5,
        rtol=1e-5,
    )


def test_padding_does_not_count() -> None:
    ours, theirs = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = 0.0
    for row, place in ((0, 0), (0, 1), (1, 0)):
        p, q = theirs[row, place].softmax(0), ours[row, place].softmax(0)
        expected += float((p * (p / q).log()).sum()) / 3
    assert kl_divergence(ours, theirs, mask).item() == pytest.approx(expected, rel=1e-5)


def test_inputs_that_hardly_vary_have_an_importance(setup: Setup) -> None:
    states = setup.rows.states
    nearly_constant = states[:1, :1] + 1e-6 * states  # (R, T, D)
    found = importance(setup.tuned.body, setup.tuned.eval(), [(nearly_constant, setup.rows.mask)])
    for matrices in found.values():
        assert all(one.inputs.isfinite().all() and one.outputs.isfinite().all() for one in matrices.values())
