"""Learning from a teacher: what is imitated, which texts are drawn, and that kills change nothing."""

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
from hmi_runtime.models import BaseModel, DomainLayers
from hmi_runtime.training.examples import IGNORED, make_examples
from hmi_runtime.training.features import FeatureFile
from hmi_runtime.training.fitting import FittedAdapter, fit_adapter
from hmi_runtime.training.foundation import Foundation
from hmi_runtime.training.hold_out import hold_out
from hmi_runtime.training.labelled import LabelledRows, Rows, TaggedRows
from hmi_runtime.training.teacher import (
    LABELS_SHARE,
    TEMPERATURE,
    SoftTargets,
    TaughtRows,
    TokenRows,
    draw,
    imitation,
    teach,
)
from hmi_runtime.training.tuning import task_loss

TAUGHT = AdapterTraining(
    epochs=1, batch_size=16, learning_rate=1e-2, max_length=16, teacher=Teacher(epochs=2, learning_rate=1e-2)
)


class Killed(Exception):
    """Stands for the end of a process between two steps."""


@pytest.fixture(scope="module")
def foundation(base: BaseModel) -> Foundation:
    layers = DomainLayers.from_encoder(base.encoder(), 2, bridge_heads=2, bridge_head_size=8)
    return Foundation.of_layers(base, layers.requires_grad_(False).eval(), "sha256:layers")


@pytest.fixture(params=["sequence", "token"])
def rows(
    request: pytest.FixtureRequest, labelled_rows: list[dict[str, Any]], tagged_rows: list[dict[str, Any]]
) -> Rows:
    if request.param == "token":
        return TaggedRows.of([row["tokens"] for row in tagged_rows], [row["tags"] for row in tagged_rows])
    return LabelledRows([row["text"] for row in labelled_rows], [row["label"] for row in labelled_rows])


def slow_imitation(ours: Tensor, theirs: Tensor) -> float:
    """KL of each pair of (N, n), written as its formula says, and the mean of them."""
    total = 0.0
    for a, b in zip(ours, theirs, strict=True):
        p, q = (b / TEMPERATURE).softmax(-1), (a / TEMPERATURE).softmax(-1)
        total += float(sum(p[i] * (p[i] / q[i]).log() for i in range(len(p)))) * TEMPERATURE**2
    return total / len(ours)


def test_imitation_of_rows_is_the_divergence() -> None:
    ours, theirs = torch.randn(5, 3), torch.randn(5, 3)
    assert float(imitation(ours, theirs, torch.ones(5))) == pytest.approx(slow_imitation(ours, theirs), 1e-4)
    assert float(imitation(theirs, theirs, torch.ones(5))) == pytest.approx(0.0, abs=1e-6)


def test_padding_is_not_imitated() -> None:
    ours, theirs = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    lengths = torch.tensor([4, 1])
    real = torch.cat([ours[0], ours[1, :1]]), torch.cat([theirs[0], theirs[1, :1]])
    assert float(imitation(ours, theirs, lengths)) == pytest.approx(slow_imitation(*real), 1e-4)


@pytest.mark.parametrize("per_token", [False, True])
def test_soft_targets_are_what_the_teacher_said(per_token: bool, tmp_path: Path) -> None:
    ids = [np.arange(1, n + 1) for n in (3, 1, 2)]
    rows = TokenRows(ids, pad_id=0)

    def said(tokens: Tensor, mask: Tensor) -> Tensor:
        every = torch.stack([tokens, tokens * 2], dim=-1).float()  # (B, T, 2)
        return every if per_token else every.sum(1)

    SoftTargets.write(tmp_path / "said.f16", rows, said, 2, per_token=per_token)
    soft = SoftTargets.open(tmp_path / "said.f16", ids, 2, per_token=per_token)
    expected = said(*rows.batch([2, 0]))
    assert torch.equal(soft.of([2, 0]), expected)


def lesson(foundation: Foundation, rows: Rows, sentences: list[str], folder: Path) -> TaughtRows:
    labels = sorted({label for answers in rows.answers() for label in answers})
    examples = make_examples(rows, labels, foundation.base.tokenizer, 16)
    ids = [
        *examples.ids,
        *(np.array(one.ids, np.int64) for one in foundation.base.tokenizer.encode(sentences, 16)),
    ]

    def said(tokens: Tensor, mask: Tensor) -> Tensor:
        every = torch.stack([(tokens % (n + 2)).float() for n in range(len(labels))], dim=-1)
        return every if examples.is_token else every[:, 1]

    width = foundation.base.config.width
    FeatureFile.write(folder / "f", ids, foundation.new_representation(), width=width, pad_id=0)
    SoftTargets.write(folder / "s", TokenRows(ids, 0), said, len(labels), per_token=examples.is_token)
    soft = SoftTargets.open(folder / "s", ids, len(labels), per_token=examples.is_token)
    return TaughtRows(FeatureFile.open(folder / "f", ids, width), examples, soft)


def test_labels_count_where_there_are_any(
    foundation: Foundation, rows: Rows, sentences: list[str], tmp_path: Path
) -> None:
    taught = lesson(foundation, rows, sentences, tmp_path)
    known, unknown = [0, 3], [len(rows), len(rows) + 5]
    for numbers in (known, unknown, [*known, *unknown]):
        _, mask = taught.batch(numbers)
        soft = taught.soft.of(numbers)
        logits = torch.randn(soft.shape)
        expected = imitation(logits, soft, mask.sum(1))
        labelled = [place for place, number in enumerate(numbers) if number < len(rows)]
        if labelled:
            targets = taught.labelled.targets_of([numbers[place] for place in labelled])
            ours = logits[labelled]
            padded = torch.full(ours.shape[:-1], IGNORED)
            padded[..., : targets.shape[-1]] = targets
            expected += LABELS_SHARE * len(labelled) / len(numbers) * task_loss(ours, padded)
        assert float(taught.loss(logits, numbers)) == pytest.approx(float(expected), 1e-5)


@given(st.lists(st.text(max_size=3), max_size=40), st.integers(0, 10), st.randoms())
def test_the_same_texts_are_drawn_in_any_order(texts: list[str], rows: int, random: Any) -> None:
    without = set(texts[:3])
    drawn = draw(texts, rows, without=without)
    shuffled = random.sample(texts, len(texts))
    assert set(draw(shuffled, rows, without=without)) == set(drawn)
    assert len(drawn) == len(set(drawn)) == min(rows, len(set(texts) - without))
    assert not without & set(drawn)


def test_what_the_teacher_knows_of_unlabelled_texts_is_learnt(
    foundation: Foundation, labelled_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    training = TAUGHT.model_copy(update={"batch_size": 8})
    few = LabelledRows([r["text"] for r in labelled_rows[:60]], [r["label"] for r in labelled_rows[:60]])
    others = [row["text"] for row in labelled_rows[60:]]
    labels = ("front", "rear")
    examples = make_examples(few, labels, foundation.base.tokenizer, 16)
    taught = teach(
        foundation,
        examples,
        examples,
        others,
        training,
        Teacher(epochs=12, learning_rate=1e-2),
        Metric.ACCURACY,
        teacher_dir=tmp_path / "teacher",
        features_dir=tmp_path,
    )
    numbers = list(range(len(taught.lengths)))
    said = taught.soft.of(numbers).argmax(-1)
    truth = torch.tensor([labels.index(row["label"]) for row in labelled_rows])
    assert (said == truth).float().mean() > 0.8
    assert len(numbers) == len(labelled_rows)


def fit(
    foundation: Foundation, rows: Rows, sentences: list[str], folder: Path, progress: Callable[..., None]
) -> FittedAdapter:
    parts = hold_out(rows)
    return fit_adapter(
        foundation,
        parts.train,
        parts.validation,
        folder,
        training=TAUGHT,
        unlabelled=sentences,
        checkpoint_seconds=0.0,
        progress=progress,
        teaching=progress,
    )


def test_a_killed_lesson_goes_on_to_the_same_bits(
    foundation: Foundation, rows: Rows, sentences: list[str], tmp_path: Path
) -> None:
    calls = 0

    def count(step: int, steps: int, metrics: dict[str, float]) -> None:
        nonlocal calls
        calls += 1

    whole = fit(foundation, rows, sentences, tmp_path / "whole", count)
    for fatal in (3, calls - 2):  # while the teacher learns, and while the adapter does
        left = fatal

        def die(step: int, steps: int, metrics: dict[str, float]) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Killed

        with pytest.raises(Killed):
            fit(foundation, rows, sentences, tmp_path / f"killed-{fatal}", die)
        again = fit(foundation, rows, sentences, tmp_path / f"killed-{fatal}", count)
        assert again.metrics == whole.metrics
        ours, theirs = dict(again.weights.named_tensors()), dict(whole.weights.named_tensors())
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
