"""Training with a teacher: the loss, the sampled texts, and that a kill does not change the result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hmi_api.resources.task_adapter import AdapterTraining, Metric, Teacher
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.source import BaseModel
from hmi_runtime.training.adapter_training import TrainedAdapter, no_progress, train_adapter
from hmi_runtime.training.backbone import Backbone, RowFile
from hmi_runtime.training.examples import IGNORED, make_examples
from hmi_runtime.training.fine_tuning import cross_entropy
from hmi_runtime.training.labelled_data import LabelledRows, Rows, TaggedRows, train_validation_split
from hmi_runtime.training.teacher import (
    HARD_LABEL_WEIGHT,
    TEMPERATURE,
    SoftLabelDataset,
    TokenInputs,
    label_with_teacher,
    sample_texts,
    soft_label_loss,
)

WITH_TEACHER = AdapterTraining(
    epochs=1, batch_size=16, learning_rate=1e-2, max_length=16, teacher=Teacher(epochs=2, learning_rate=1e-2)
)


class Killed(Exception):
    """Simulates a process that is killed between two steps."""


@pytest.fixture(scope="module")
def backbone(base: BaseModel) -> Backbone:
    layers = DomainLayers.from_encoder(base.encoder(), 2, bridge_heads=2, bridge_head_size=8)
    return Backbone.from_layers(base, layers.requires_grad_(False).eval(), "sha256:layers")


@pytest.fixture(params=["sequence", "token"])
def rows(
    request: pytest.FixtureRequest, labelled_rows: list[dict[str, Any]], tagged_rows: list[dict[str, Any]]
) -> Rows:
    if request.param == "token":
        return TaggedRows.of([row["tokens"] for row in tagged_rows], [row["tags"] for row in tagged_rows])
    return LabelledRows([row["text"] for row in labelled_rows], [row["label"] for row in labelled_rows])


def slow_divergence(ours: Tensor, theirs: Tensor) -> float:
    """The mean KL divergence of the pairs of (N, n), computed by its formula."""
    total = 0.0
    for a, b in zip(ours, theirs, strict=True):
        p, q = (b / TEMPERATURE).softmax(-1), (a / TEMPERATURE).softmax(-1)
        total += float(sum(p[i] * (p[i] / q[i]).log() for i in range(len(p)))) * TEMPERATURE**2
    return total / len(ours)


def test_the_soft_label_loss_is_the_divergence() -> None:
    ours, theirs = torch.randn(5, 3), torch.randn(5, 3)
    assert float(soft_label_loss(ours, theirs, torch.ones(5))) == pytest.approx(
        slow_divergence(ours, theirs), 1e-4
    )
    assert float(soft_label_loss(theirs, theirs, torch.ones(5))) == pytest.approx(0.0, abs=1e-6)


def test_padding_does_not_count_in_the_soft_label_loss() -> None:
    ours, theirs = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    lengths = torch.tensor([4, 1])
    real = torch.cat([ours[0], ours[1, :1]]), torch.cat([theirs[0], theirs[1, :1]])
    assert float(soft_label_loss(ours, theirs, lengths)) == pytest.approx(slow_divergence(*real), 1e-4)


@pytest.mark.parametrize("per_token", [False, True])
def test_soft_labels_are_the_teachers_logits(per_token: bool, tmp_path: Path) -> None:
    ids = [np.arange(1, n + 1) for n in (3, 1, 2)]

    def teacher(tokens: Tensor, mask: Tensor) -> Tensor:
        every = torch.stack([tokens, tokens * 2], dim=-1).float()  # (B, T, 2)
        return every if per_token else every.sum(1)

    path = tmp_path / "logits.f16"
    RowFile.write(path, ids, teacher, width=2, pad_id=0, per_token=per_token)
    found, mask = RowFile.open(path, ids, 2, per_token=per_token).batch([2, 0])
    tokens, token_mask = TokenInputs(ids, pad_id=0).batch([2, 0])
    assert torch.equal(found if per_token else found[:, 0], teacher(tokens, token_mask))
    assert torch.equal(mask, token_mask if per_token else torch.ones(2, 1, dtype=torch.bool))


def soft_label_dataset(
    backbone: Backbone, rows: Rows, sentences: list[str], folder: Path
) -> SoftLabelDataset:
    labels = sorted({label for answers in rows.answers() for label in answers})
    examples = make_examples(rows, labels, backbone.base.tokenizer, 16)
    ids = [
        *examples.ids,
        *(np.array(one.ids, np.int64) for one in backbone.base.tokenizer.encode(sentences, 16)),
    ]

    def teacher(tokens: Tensor, mask: Tensor) -> Tensor:
        every = torch.stack([(tokens % (n + 2)).float() for n in range(len(labels))], dim=-1)
        return every if examples.is_token else every[:, 1]

    width = backbone.base.config.width
    features = RowFile.write(
        folder / "f", ids, backbone.new_extractor(), width=width, pad_id=0, per_token=True
    )
    soft = RowFile.write(folder / "s", ids, teacher, width=len(labels), pad_id=0, per_token=examples.is_token)
    return SoftLabelDataset(features, examples, soft)


def test_labelled_rows_have_a_cross_entropy_too(
    backbone: Backbone, rows: Rows, sentences: list[str], tmp_path: Path
) -> None:
    dataset = soft_label_dataset(backbone, rows, sentences, tmp_path)
    known, unknown = [0, 3], [len(rows), len(rows) + 5]
    for numbers in (known, unknown, [*known, *unknown]):
        _, mask = dataset.batch(numbers)
        soft = dataset.soft_labels(numbers)
        logits = torch.randn(soft.shape)
        expected = soft_label_loss(logits, soft, mask.sum(1))
        labelled = [place for place, number in enumerate(numbers) if number < len(rows)]
        if labelled:
            targets = dataset.labelled.targets_of([numbers[place] for place in labelled])
            ours = logits[labelled]
            padded = torch.full(ours.shape[:-1], IGNORED)
            padded[..., : targets.shape[-1]] = targets
            expected += HARD_LABEL_WEIGHT * len(labelled) / len(numbers) * cross_entropy(ours, padded)
        assert float(dataset.loss(logits, numbers)) == pytest.approx(float(expected), 1e-5)


@given(st.lists(st.text(max_size=3), max_size=40), st.integers(0, 10), st.randoms())
def test_the_same_texts_are_sampled_in_any_order(texts: list[str], rows: int, random: Any) -> None:
    without = set(texts[:3])
    drawn = sample_texts(texts, rows, without=without)
    shuffled = random.sample(texts, len(texts))
    assert set(sample_texts(shuffled, rows, without=without)) == set(drawn)
    assert len(drawn) == len(set(drawn)) == min(rows, len(set(texts) - without))
    assert not without & set(drawn)


def test_the_adapter_learns_the_teachers_answers_to_unlabelled_texts(
    backbone: Backbone, labelled_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    training = WITH_TEACHER.model_copy(update={"batch_size": 8})
    few = LabelledRows([r["text"] for r in labelled_rows[:60]], [r["label"] for r in labelled_rows[:60]])
    others = [row["text"] for row in labelled_rows[60:]]
    labels = ("front", "rear")
    examples = make_examples(few, labels, backbone.base.tokenizer, 16)
    dataset = label_with_teacher(
        backbone,
        examples,
        examples,
        others,
        training,
        Teacher(epochs=12, learning_rate=1e-2),
        Metric.ACCURACY,
        teacher_dir=tmp_path / "teacher",
        features_dir=tmp_path,
    )
    numbers = list(range(len(dataset.lengths)))
    said = dataset.soft_labels(numbers).argmax(-1)
    truth = torch.tensor([labels.index(row["label"]) for row in labelled_rows])
    assert (said == truth).float().mean() > 0.8
    assert len(numbers) == len(labelled_rows)


def fit(
    backbone: Backbone, rows: Rows, sentences: list[str], folder: Path, progress: Callable[..., None]
) -> TrainedAdapter:
    parts = train_validation_split(rows)
    return train_adapter(
        backbone,
        parts.train,
        parts.validation,
        folder,
        training=WITH_TEACHER,
        unlabelled=sentences,
        checkpoint_seconds=0.0,
        progress_of=lambda stage: no_progress(stage) if stage == "settling" else progress,
    )


def test_a_killed_training_with_a_teacher_resumes_to_the_same_bits(
    backbone: Backbone, rows: Rows, sentences: list[str], tmp_path: Path
) -> None:
    calls = 0

    def count(step: int, steps: int, metrics: dict[str, float]) -> None:
        nonlocal calls
        calls += 1

    whole = fit(backbone, rows, sentences, tmp_path / "whole", count)
    for fatal in (3, calls - 2):  # during the training of the teacher, and of the adapter
        left = fatal

        def die(step: int, steps: int, metrics: dict[str, float]) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Killed

        with pytest.raises(Killed):
            fit(backbone, rows, sentences, tmp_path / f"killed-{fatal}", die)
        again = fit(backbone, rows, sentences, tmp_path / f"killed-{fatal}", count)
        assert again.metrics == whole.metrics
        ours, theirs = dict(again.weights.named_tensors()), dict(whole.weights.named_tensors())
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
