"""Training an adapter: every method learns, evaluation equals serving, and a kill changes nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support_encoders import FAMILIES

from hmi_api.errors import InvalidInput
from hmi_api.resources.task_adapter import AdapterPlacement, AdapterTraining, Fit, Method, MethodType, Metric
from hmi_runtime.adapters.heads import run_head
from hmi_runtime.adapters.reference import run_row
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.source import BaseModel
from hmi_runtime.training.adapter_training import (
    adapter_logits,
    evaluate,
    no_progress,
    task_dataset,
    train_adapter,
)
from hmi_runtime.training.backbone import Backbone
from hmi_runtime.training.examples import IGNORED, make_examples
from hmi_runtime.training.labelled_data import LabelledRows, Rows, TaggedRows, train_validation_split
from hmi_runtime.training.optim import Progress

QUICK = AdapterTraining(epochs=12, batch_size=8, learning_rate=1e-2, max_length=16)

METHODS = [
    Method(),
    Method(size=4),
    Method(fit=Fit.DIRECT, size=4),
    Method(type=MethodType.BOTTLENECK, size=8),
    Method(type=MethodType.BOTTLENECK, size=8, placement=AdapterPlacement.SEQUENTIAL),
]


class Killed(Exception):
    """Simulates a process that is killed between two steps."""


@pytest.fixture(scope="module")
def backbone(base: BaseModel) -> Backbone:
    layers = DomainLayers.from_encoder(base.encoder(), 2, bridge_heads=2, bridge_head_size=8)
    return Backbone.from_layers(base, layers.requires_grad_(False).eval(), "sha256:layers")


@pytest.fixture
def sides(labelled_rows: list[dict[str, Any]]) -> LabelledRows:
    return LabelledRows([row["text"] for row in labelled_rows], [row["label"] for row in labelled_rows])


@pytest.fixture
def items(tagged_rows: list[dict[str, Any]]) -> TaggedRows:
    return TaggedRows.of([row["tokens"] for row in tagged_rows], [row["tags"] for row in tagged_rows])


@pytest.mark.parametrize(
    "method", METHODS, ids=lambda m: f"{m.type}-{m.effective_fit}-{m.placement}-{m.size}"
)
def test_every_method_learns_a_sequence_task(
    method: Method, backbone: Backbone, sides: LabelledRows, tmp_path: Path
) -> None:
    parts = train_validation_split(sides)
    fitted = train_adapter(backbone, parts.train, parts.validation, tmp_path, method=method, training=QUICK)
    assert fitted.weights.labels == ("front", "rear")
    assert fitted.weights.layers_digest == "sha256:layers"
    assert fitted.metrics["validation"] > 0.8
    measured = evaluate(backbone, fitted.weights, parts.validation, tmp_path, max_length=16)
    assert measured["accuracy"] == pytest.approx(fitted.metrics["validation"])
    assert_half_precision_keeps_predictions(backbone, fitted.weights, sides, tmp_path)
    if method.type is MethodType.LORA and method.size is not None:
        assert fitted.weights.rank == method.size


@pytest.mark.parametrize("base_folder", FAMILIES, indirect=True)
@pytest.mark.parametrize("method", [METHODS[0], METHODS[2]], ids=["compressed", "direct"])
def test_a_token_task(method: Method, backbone: Backbone, items: TaggedRows, tmp_path: Path) -> None:
    parts = train_validation_split(items)
    fitted = train_adapter(backbone, parts.train, parts.validation, tmp_path, method=method, training=QUICK)
    assert fitted.weights.labels == ("O", "B-BIKE", "B-COLOUR")
    if fitted.tuned is not None:
        final_norm = fitted.tuned.body.final_norm  # type: ignore[attr-defined]
        base_norm = backbone.encoder.final_norm
        assert (final_norm is None) == (base_norm is None)
        if base_norm is not None:  # adapters cannot store it, so it must not be trained
            assert torch.equal(final_norm.weight, base_norm.weight)
    measured = evaluate(backbone, fitted.weights, parts.validation, tmp_path, max_length=16)
    assert measured["entity_f1"] > 0.3
    assert set(measured) == {"accuracy", "macro_f1", "entity_f1"}
    assert_half_precision_keeps_predictions(backbone, fitted.weights, items, tmp_path)


def assert_half_precision_keeps_predictions(
    backbone: Backbone, trained: AdapterWeights, rows: Rows, folder: Path
) -> None:
    """An adapter as it is stored predicts what it predicts in float32; probabilities differ by rounding."""
    stored = trained.as_stored()
    assert stored.nbytes < 0.6 * trained.nbytes
    dataset = task_dataset(backbone, rows, trained.labels, 16, folder)
    batch = dataset.features.batch(range(len(dataset.examples)))
    with torch.no_grad():
        ours, theirs = (
            adapter_logits(backbone.upper(), weights)(*batch)[batch[1] if dataset.examples.is_token else ...]
            for weights in (stored, trained)
        )  # (N, n)
    ours, theirs = ours.softmax(-1), theirs.softmax(-1)
    assert (ours - theirs).abs().amax() < 2e-3
    best = theirs.topk(2).values  # (N, 2)
    no_tie = best[:, 0] - best[:, 1] > 4e-3  # (N,)
    assert no_tie.float().mean() > 0.98
    assert torch.equal(ours[no_tie].argmax(-1), theirs[no_tie].argmax(-1))


def test_evaluated_logits_equal_those_of_a_single_row(
    backbone: Backbone, sides: LabelledRows, tmp_path: Path
) -> None:
    weights = quick_adapter(backbone, sides, tmp_path)
    rows = task_dataset(backbone, sides.take(range(5)), weights.labels, 16, tmp_path)
    features, mask = rows.features.batch(range(5))
    upper = backbone.upper()
    with torch.no_grad():
        together = adapter_logits(upper, weights)(features, mask)
        for row in range(5):
            hidden = run_row(upper, weights, features[row], mask[row])
            alone = run_head(weights.head, hidden, mask[row])
            assert torch.allclose(together[row], alone, atol=1e-5)


def quick_adapter(backbone: Backbone, rows: Rows, folder: Path) -> AdapterWeights:
    training = QUICK.model_copy(update={"epochs": 1})
    parts = train_validation_split(rows)
    return train_adapter(backbone, parts.train, parts.validation, folder, training=training).weights


@pytest.mark.parametrize("killed_at", [1, 13, 20, 28])
@pytest.mark.parametrize("method", [METHODS[0], METHODS[3]], ids=["compressed", "bottleneck"])
def test_a_killed_training_resumes_to_the_same_bits(
    killed_at: int, method: Method, backbone: Backbone, sides: LabelledRows, tmp_path: Path
) -> None:
    parts = train_validation_split(sides)
    training = QUICK.model_copy(update={"epochs": 2})

    def kill(step: int, steps: int, metrics: dict[str, float]) -> None:
        assert steps == 28
        if step == killed_at:
            raise Killed

    def progress_of(stage: str) -> Progress:
        return kill if stage == "training" else no_progress(stage)

    def fit(folder: str, **more: Any) -> AdapterWeights:
        fitted = train_adapter(
            backbone,
            parts.train,
            parts.validation,
            tmp_path / folder,
            method=method,
            training=training,
            **more,
        )
        return fitted.weights

    whole = fit("whole")
    with pytest.raises(Killed):
        fit("parts", checkpoint_seconds=0.0, progress_of=progress_of)
    resumed = fit("parts", checkpoint_seconds=0.0)
    assert resumed.config() == whole.config()
    for (name, tensor), (_, again) in zip(whole.named_tensors(), resumed.named_tensors(), strict=True):
        assert torch.equal(tensor, again), name


def test_features_are_cached_and_exact_to_half_precision(
    backbone: Backbone, sides: LabelledRows, tmp_path: Path
) -> None:
    rows = task_dataset(backbone, sides, ("front", "rear"), 16, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = task_dataset(backbone, sides, ("front", "rear"), 16, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    layers = DomainLayers.from_encoder(backbone.base.encoder(), 2, bridge_heads=2, bridge_head_size=8)
    for number in (0, 7, len(sides) - 1):
        states, mask = again.features.batch([number])
        ids = torch.from_numpy(rows.examples.ids[number])[None]
        with torch.no_grad():
            expected = layers.represent(ids, mask)
        assert torch.allclose(states, expected, atol=2e-3, rtol=2e-3)


def test_the_unsplit_base_is_a_backbone_too(base: BaseModel, sentences: list[str]) -> None:
    unsplit = Backbone.from_unsplit_base(base, 2)
    ids = torch.from_numpy(np.array(base.tokenizer.encode(sentences[:1], 16)[0].ids))[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    expected = base.encoder().hidden_states(ids, mask)[2]
    assert torch.equal(unsplit.new_extractor()(ids, mask), expected)


def test_the_first_token_of_a_word_has_its_tag(base: BaseModel) -> None:
    rows = TaggedRows.of([["the", "red", "bike"], ["chain"]], [["O", "B-ITEM", "I-ITEM"], ["O"]])
    examples = make_examples(rows, ("O", "B-ITEM", "I-ITEM"), base.tokenizer, 4)
    assert [list(row) for row in examples.targets] == [[IGNORED, 0, 1, IGNORED], [IGNORED, 0, IGNORED]]
    predicted = [np.array([0, 0, 1, 2]), np.array([2, 1, 1])]
    # The third word was cut off, so it counts as O and the entity has a wrong end; "chain" is a false entity.
    assert examples.score(predicted, Metric.ENTITY_F1) == 0.0
    assert examples.score(predicted, Metric.ACCURACY) == pytest.approx(2 / 4)


def test_a_word_without_tokens_shifts_no_other_words_tag(base: BaseModel) -> None:
    words = ["Meet", "\u200b", "John", "Smith", "today"]  # the tokeniser ignores the second word
    rows = TaggedRows.of([words], [["O", "O", "B-PER", "I-PER", "O"]])
    examples = make_examples(rows, ("O", "B-PER", "I-PER"), base.tokenizer, 16)
    perfect = [np.where(row == IGNORED, 0, row) for row in examples.targets]
    assert examples.score(perfect, Metric.ENTITY_F1) == 1.0
    assert examples.score(perfect, Metric.ACCURACY) == 1.0


def test_rows_with_unknown_labels_are_refused(
    backbone: Backbone, sides: LabelledRows, tmp_path: Path
) -> None:
    weights = quick_adapter(backbone, sides, tmp_path)
    with pytest.raises(InvalidInput) as caught:
        evaluate(backbone, weights, LabelledRows(["the chain"], ["middle"]), tmp_path)
    assert caught.value.reason == "LabelUnknown"
