"""Trained modules equal their served form: LoRA, bottlenecks, heads, and full tuning after compression."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from support_encoders import ARCHITECTURES, random_encoder
from torch import Tensor, nn

from hmi_api.errors import InvalidInput
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.adapters.bottleneck import add_bottlenecks, export_bottlenecks
from hmi_runtime.adapters.checks import check_adapter
from hmi_runtime.adapters.compression import CutQuality, Decomposition, importance, smallest_rank
from hmi_runtime.adapters.executor import UpperExecutor
from hmi_runtime.adapters.heads import HeadModule, run_heads
from hmi_runtime.adapters.lora import add_lora, export_lora
from hmi_runtime.adapters.reference import run_layers
from hmi_runtime.adapters.slot_pool import SlotLimits, SlotPool
from hmi_runtime.adapters.weights import AdapterWeights, LayerAdapter, LoraMatrix
from hmi_runtime.models.architecture import MATRICES, NORMS, EncoderConfig
from hmi_runtime.models.encoder import UpperLayers

SPLIT, WIDTH = 2, 16


@pytest.fixture(params=ARCHITECTURES)
def base(request: pytest.FixtureRequest) -> UpperLayers:
    torch.set_num_threads(1)
    config = replace(ARCHITECTURES[request.param], width=WIDTH, heads=2, ffn_width=24)
    return UpperLayers(random_encoder(config), SPLIT)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1)), mask


def train(
    upper: UpperLayers, head: HeadModule, learning: list[nn.Parameter], batch: tuple[Tensor, Tensor]
) -> None:
    """Train a few steps at a high rate, so that every part has changed."""
    optimiser = torch.optim.Adam([*learning, *head.parameters()], lr=0.02)
    goal = torch.tensor([0, 2]) if head.pooling != "token" else torch.tensor([[0, 1, 2, 1, 0]] * 2)
    head.eval()
    for _ in range(8):
        logits = head(upper(*batch), batch[1])
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), goal.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def adapter(config: EncoderConfig, layers: Mapping[int, LayerAdapter], head: HeadModule) -> AdapterWeights:
    task = TaskType.TOKEN_CLASSIFICATION if head.pooling == "token" else TaskType.SEQUENCE_CLASSIFICATION
    weights = AdapterWeights(task, ("a", "b", "c"), layers, head.export(), "sha256:base", "sha256:layers")
    check_adapter(weights, config, SPLIT, base_digest="sha256:base", layers_digest="sha256:layers")
    return weights


def serve(base: UpperLayers, weights: AdapterWeights, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
    pool = SlotPool(base, 1, SlotLimits(max_rank=16, max_bottleneck=8, max_labels=3))
    pool.write(0, weights)
    return run_heads(pool, UpperExecutor(base, pool).run(*batch, [0, 0]), batch[1], [0, 0])


def decomposed(tuned: UpperLayers, base: UpperLayers, rank: int, head: HeadModule) -> Decomposition:
    """Return the decomposed differences, with importance measured on random rows."""
    generator = torch.Generator().manual_seed(7)
    mask = torch.arange(6) < torch.randint(2, 7, (16, 1), generator=generator)  # (16, 6)
    batches = [(torch.randn(16, 6, WIDTH, generator=generator), mask) for _ in range(4)]
    weights = importance(tuned, lambda x, seen: head.eval()(tuned(x, seen), seen), batches)
    return Decomposition(tuned, base, weights, rank)


Fit = tuple[
    Callable[[UpperLayers], list[nn.Parameter]],
    Callable[[UpperLayers, UpperLayers, HeadModule], dict[int, LayerAdapter]],
]
FITS: dict[str, Fit] = {
    "lora": (lambda upper: add_lora(upper, 4, alpha=8), lambda upper, *_: export_lora(upper)),
    "parallel": (
        lambda upper: add_bottlenecks(upper, 8, "parallel"),
        lambda upper, *_: export_bottlenecks(upper),
    ),
    "sequential": (
        lambda upper: add_bottlenecks(upper, 8, "sequential"),
        lambda upper, *_: export_bottlenecks(upper),
    ),
    "compressed at full rank": (
        lambda upper: list(upper.layers.requires_grad_(True).parameters()),
        lambda upper, base, head: decomposed(upper, base, WIDTH, head).cut(WIDTH),
    ),
}


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("task", [TaskType.SEQUENCE_CLASSIFICATION, TaskType.TOKEN_CLASSIFICATION])
def test_trained_equals_served(
    base: UpperLayers, batch: tuple[Tensor, Tensor], fit: str, task: TaskType
) -> None:
    prepare, export = FITS[fit]
    upper, head = copy.deepcopy(base), HeadModule(WIDTH, 3, task)
    train(upper, head, prepare(upper), batch)
    with torch.no_grad():
        expected = head(upper(*batch), batch[1])
        untouched = head(base(*batch), batch[1])

    found = serve(base, adapter(base.config, export(upper, base, head), head), batch)

    assert not torch.allclose(expected, untouched, atol=1e-2)
    for row, length in enumerate(batch[1].sum(1).tolist()):
        kept = slice(None) if head.pooling != "token" else slice(length)
        torch.testing.assert_close(found[row][kept], expected[row][kept], atol=1e-4, rtol=1e-4)


def test_training_does_not_change_frozen_weights(base: UpperLayers, batch: tuple[Tensor, Tensor]) -> None:
    upper, head = copy.deepcopy(base), HeadModule(WIDTH, 3)
    train(upper, head, add_lora(upper, 4), batch)
    assert torch.equal(upper.layers[0].query.frozen.weight, base.layers[0].query.weight)


@pytest.mark.parametrize("add", [lambda u: add_lora(u, 4), lambda u: add_bottlenecks(u, 4)])
def test_a_new_adapter_starts_as_the_frozen_model(
    base: UpperLayers, batch: tuple[Tensor, Tensor], add: Callable[[UpperLayers], list[nn.Parameter]]
) -> None:
    upper = copy.deepcopy(base)
    add(upper)
    torch.testing.assert_close(upper(*batch), base(*batch))


def test_a_seed_gives_the_same_adapter(base: UpperLayers) -> None:
    first, second, other = (copy.deepcopy(base) for _ in range(3))
    for upper, seed in ((first, 1), (second, 1), (other, 2)):
        add_lora(upper, 4, seed=seed)
    assert torch.equal(first.layers[1].key.a, second.layers[1].key.a)
    assert not torch.equal(first.layers[1].key.a, other.layers[1].key.a)


def tuned_by_rank(base: UpperLayers, rank: int) -> UpperLayers:
    """Return layers whose matrices differ from the base's by exactly that rank."""
    tuned, generator = copy.deepcopy(base), torch.Generator().manual_seed(2)
    for layer in tuned.layers:
        left, right = (torch.randn(WIDTH, rank, generator=generator) for _ in range(2))
        layer.query.weight += left @ right.t()
    return tuned


def test_a_cut_keeps_a_difference_of_the_same_rank_exactly(base: UpperLayers) -> None:
    tuned = tuned_by_rank(base, 3)
    found = decomposed(tuned, base, 8, HeadModule(WIDTH, 3))
    assert found.energy_kept(3) == pytest.approx(1.0, abs=1e-5)
    assert found.energy_kept(1) < found.energy_kept(2) < 0.99
    lora = found.cut(3)[SPLIT].lora["query"]
    torch.testing.assert_close(
        lora.b @ lora.a, tuned.layers[0].query.weight - base.layers[0].query.weight, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(lora.a.norm(dim=1), lora.b.norm(dim=0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("task", [TaskType.SEQUENCE_CLASSIFICATION, TaskType.TOKEN_CLASSIFICATION])
def test_a_cut_by_importance_changes_answers_less_than_one_by_size(
    base: UpperLayers, batch: tuple[Tensor, Tensor], task: TaskType
) -> None:
    tuned, head = copy.deepcopy(base), HeadModule(WIDTH, 3, task)
    train(tuned, head, list(tuned.layers.requires_grad_(True).parameters()), batch)
    rows = torch.randn(64, 6, WIDTH, generator=torch.Generator().manual_seed(8))
    mask = torch.ones(64, 6, dtype=torch.bool)
    with torch.no_grad():
        whole = head(tuned(rows, mask), mask)

    def change(layers: Mapping[int, LayerAdapter]) -> float:
        given = run_layers(base, layers, rows, mask)
        with torch.no_grad():
            return float((head(given, mask) - whole).square().mean())

    by_importance = decomposed(tuned, base, 4, head)
    for rank in (1, 2, 4):
        assert change(by_importance.cut(rank)) < change(cut_by_size(tuned, base, rank))


def test_the_bias_makes_up_for_a_cut_at_the_mean_input(base: UpperLayers) -> None:
    tuned = tuned_by_rank(base, 6)
    generator = torch.Generator().manual_seed(9)
    rows = torch.randn(40, 5, WIDTH, generator=generator) + 3 * torch.randn(WIDTH, generator=generator)
    mask, head = torch.ones(40, 5, dtype=torch.bool), HeadModule(WIDTH, 3).eval()
    weights = importance(tuned, lambda x, seen: head(tuned(x, seen), seen), [(rows, mask)])

    cut = Decomposition(tuned, base, weights, 1).cut(1)[SPLIT]

    query, lora = tuned.layers[0].query, cut.lora["query"]
    read: list[Tensor] = []
    with query.register_forward_hook(lambda module, given, output: read.extend(given)), torch.no_grad():
        tuned(rows, mask)
    mean = read[0].flatten(0, 1).mean(0)
    served = base.layers[0].query.weight @ mean + lora.b @ (lora.a @ mean) + cut.bias["query"]
    torch.testing.assert_close(served, query(mean), atol=1e-4, rtol=1e-4)


def test_importance_needs_rows(base: UpperLayers) -> None:
    with pytest.raises(ValueError, match="no rows"):
        importance(base, base, [])


def cut_by_size(tuned: UpperLayers, base: UpperLayers, rank: int) -> dict[int, LayerAdapter]:
    """The reference: the largest singular values of each difference, and tuned biases."""
    layers = {}
    for index, (layer, other) in enumerate(zip(tuned.layers, base.layers, strict=True), start=SPLIT):
        lora = {}
        for name in MATRICES:
            left, values, right = torch.linalg.svd(
                (layer.get_submodule(name).weight - other.get_submodule(name).weight).detach()
            )
            lora[name] = LoraMatrix(values[:rank, None] * right[:rank], left[:, :rank])
        layers[index] = LayerAdapter(
            lora=lora,
            bias={name: layer.get_submodule(name).bias.detach() for name in MATRICES},
            norms={
                name: (layer.get_submodule(name).weight.detach(), layer.get_submodule(name).bias.detach())
                for name in NORMS
            },
        )
    return layers


def test_an_untuned_model_compresses_to_zero(base: UpperLayers) -> None:
    found = decomposed(base, base, 4, HeadModule(WIDTH, 3))
    assert found.energy_kept(1) == 1.0
    assert all(not m.b.any() for layer in found.cut(4).values() for m in layer.lora.values())


@pytest.mark.parametrize(
    ("kept", "chosen", "tried"),
    [
        ({8: (0.896, 0.99), 16: (0.90, 0.99), 32: (0.90, 1.0)}, 8, {8}),
        ({8: (0.85, 0.99), 16: (0.91, 0.992), 32: (0.90, 1.0)}, 16, {8, 16}),
        # An equal metric with different predictions is chance.
        ({8: (0.90, 0.90), 16: (0.92, 0.98), 32: (0.90, 0.99)}, 32, {8, 16, 32}),
        ({8: (0.80, 0.80), 16: (0.85, 0.90), 32: (0.84, 0.95)}, 32, {8, 16, 32}),
        ({8: (0.80, 0.90), 16: (0.80, 0.90), 32: (0.80, 0.90)}, 8, {8, 16, 32}),
    ],
)
def test_the_smallest_rank_that_keeps_metric_and_predictions_is_taken(
    kept: dict[int, tuple[float, float]], chosen: int, tried: set[int]
) -> None:
    choice = smallest_rank(lambda rank: CutQuality(*kept[rank]), 0.90)
    assert choice.rank == chosen
    assert set(choice.tried) == tried


def test_encoders_have_no_head_for_generation() -> None:
    with pytest.raises(InvalidInput, match="TaskUnsupported"):
        HeadModule(WIDTH, 2, TaskType.TEXT_GENERATION)
