"""Training steps in bfloat16: near float32, the same bits at every run, and resumed by documented rules."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support_encoders import FAMILIES
from torch import Tensor
from torch.nn import functional

from hmi_api.internal.trainer import TrainingSettings
from hmi_api.resources.domain import DomainTraining
from hmi_api.resources.task_adapter import AdapterTraining, Fit, Method, MethodType, TaskType, Teacher
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.source import BaseModel
from hmi_runtime.models.windows import trigrams
from hmi_runtime.training import precision as precision_module
from hmi_runtime.training.adapter_training import train_adapter
from hmi_runtime.training.backbone import Backbone
from hmi_runtime.training.checkpoint import load_tensors, save_tensors
from hmi_runtime.training.distillation import Distiller, distill, evaluate_distillation
from hmi_runtime.training.labelled_data import LabelledRows, train_validation_split
from hmi_runtime.training.precision import (
    BFLOAT16,
    FLOAT32,
    PRECISION_METRIC,
    StepPrecision,
    multiplies_bfloat16,
    step_precision,
)
from hmi_runtime.training.token_dataset import TokenDataset

FORCED_FLOAT32 = StepPrecision(torch.float32, forced=True)
FORCED_BFLOAT16 = StepPrecision(torch.bfloat16, forced=True)


@pytest.fixture
def sides(labelled_rows: list[dict[str, Any]]) -> LabelledRows:
    return LabelledRows([row["text"] for row in labelled_rows], [row["label"] for row in labelled_rows])


class Killed(Exception):
    """Ends a training, as a signal does."""


def kill_at(wanted: int) -> Any:
    def progress(step: int, steps: int, metrics: dict[str, float]) -> None:
        if step == wanted:
            raise Killed

    return progress


@pytest.fixture(scope="module")
def dataset(base: BaseModel, sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    return TokenDataset.write(tmp_path_factory.mktemp("corpus"), sentences, base.tokenizer, 16)


def start(base: BaseModel) -> DomainLayers:
    return DomainLayers.from_encoder(base.encoder(), 2, bridge_heads=2, bridge_head_size=4)


def gradient(base: BaseModel, dataset: TokenDataset, precision: StepPrecision) -> tuple[Tensor, Tensor]:
    """Return the loss of a batch and its gradient, all parameters in one vector."""
    layers = start(base)
    ids, mask = dataset.batch(dataset.training_rows[:16], base.config.pad_id)
    loss = Distiller(base.encoder(), layers).loss(ids, mask, trigrams(ids, mask), precision)
    parameters = list(layers.parameters())
    found = torch.autograd.grad(loss, parameters)
    assert all(part.dtype == torch.float32 for part in (loss, *found))
    return loss, torch.cat([part.flatten() for part in found])


@pytest.mark.parametrize("base_folder", FAMILIES, indirect=True)
def test_the_gradient_is_near_that_of_float32(base: BaseModel, dataset: TokenDataset) -> None:
    loss, exact = gradient(base, dataset, FLOAT32)
    near, ours = gradient(base, dataset, BFLOAT16)
    assert near.item() == pytest.approx(loss.item(), rel=0.02)
    assert torch.cosine_similarity(ours, exact, dim=0) > 0.99
    assert not torch.equal(ours, exact)


def test_attention_and_everything_outside_stay_float32() -> None:
    x = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    with BFLOAT16.products():
        product = functional.linear(x, torch.eye(4))
        attended = functional.scaled_dot_product_attention(product, x, x, attn_mask=torch.zeros(1, 1, 1, 3))
    assert (product.dtype, attended.dtype) == (torch.bfloat16, torch.float32)
    exact = functional.scaled_dot_product_attention(product.float(), x, x)
    assert torch.equal(attended, exact)
    assert functional.linear(x, torch.eye(4)).dtype == torch.float32


def test_distillation_in_bfloat16_learns_as_much(
    base: BaseModel, dataset: TokenDataset, tmp_path: Path
) -> None:
    config = DomainTraining(steps=40, batch_size=8, learning_rate=3e-3)
    losses = {}
    for precision in (FLOAT32, BFLOAT16):
        layers = start(base)
        path = tmp_path / precision.name
        used = distill(base.encoder(), layers, dataset, config, checkpoint_path=path, precision=precision)
        assert used == precision
        assert all(parameter.dtype == torch.float32 for parameter in layers.parameters())
        losses[precision.name] = evaluate_distillation(base.encoder(), layers, dataset)["distillation_loss"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


def test_a_killed_distillation_in_bfloat16_resumes_to_the_same_bits(
    base: BaseModel, dataset: TokenDataset, tmp_path: Path
) -> None:
    config = DomainTraining(steps=10, batch_size=7, seed=3)
    options: Any = {"checkpoint_seconds": 0, "precision": BFLOAT16}
    whole, resumed = start(base), start(base)
    distill(base.encoder(), whole, dataset, config, checkpoint_path=tmp_path / "whole", **options)
    options["checkpoint_path"] = tmp_path / "parts"
    with pytest.raises(Killed):
        distill(base.encoder(), start(base), dataset, config, **options, progress=kill_at(4))
    distill(base.encoder(), resumed, dataset, config, **options)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


@pytest.mark.parametrize(
    ("made_in", "resumed_in", "used"),
    [
        (BFLOAT16, FLOAT32, FLOAT32),  # on a CPU without bfloat16
        (FLOAT32, BFLOAT16, FLOAT32),  # on a CPU with it: the checkpoint's precision is kept
        (FLOAT32, FORCED_BFLOAT16, FORCED_BFLOAT16),
        (BFLOAT16, FORCED_FLOAT32, FORCED_FLOAT32),
    ],
)
def test_a_checkpoint_is_continued_in_its_precision_if_the_cpu_can(
    made_in: StepPrecision,
    resumed_in: StepPrecision,
    used: StepPrecision,
    base: BaseModel,
    dataset: TokenDataset,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = DomainTraining(steps=6, batch_size=8)
    options: Any = {"checkpoint_path": tmp_path / "checkpoint", "checkpoint_seconds": 0}
    with pytest.raises(Killed):
        distill(
            base.encoder(), start(base), dataset, config, precision=made_in, progress=kill_at(3), **options
        )
    caplog.set_level("INFO")
    assert distill(base.encoder(), start(base), dataset, config, precision=resumed_in, **options) == used
    assert f"the checkpoint was made in {made_in.name}, training continues in" in caplog.text
    assert ("differs" in caplog.text) == (used.name != made_in.name)


def test_a_checkpoint_without_a_precision_was_made_in_float32(
    base: BaseModel, dataset: TokenDataset, tmp_path: Path
) -> None:
    config = DomainTraining(steps=6, batch_size=8)
    path = tmp_path / "checkpoint"
    options: Any = {"checkpoint_path": path, "checkpoint_seconds": 0}
    with pytest.raises(Killed):
        distill(base.encoder(), start(base), dataset, config, progress=kill_at(3), **options)
    saved = load_tensors(path)
    assert saved is not None
    tensors, metadata = saved
    assert metadata.pop("precision") == "float32"
    save_tensors(path, tensors, metadata)
    assert distill(base.encoder(), start(base), dataset, config, precision=BFLOAT16, **options) == FLOAT32


@pytest.mark.parametrize(
    "method",
    [Method(), Method(fit=Fit.DIRECT), Method(type=MethodType.BOTTLENECK)],
    ids=["compressed", "direct", "bottleneck"],
)
def test_an_adapter_in_bfloat16_learns_the_task_to_the_same_bits_every_time(
    method: Method, base: BaseModel, sides: LabelledRows, tmp_path: Path
) -> None:
    layers = start(base).requires_grad_(False).eval()
    parts = train_validation_split(sides)
    training = AdapterTraining(
        epochs=4, batch_size=8, learning_rate=1e-2, max_length=16, teacher=Teacher(epochs=1)
    )

    def train(name: str, precision: StepPrecision) -> tuple[dict[str, float], list[Tensor]]:
        made = train_adapter(
            Backbone.from_layers(base, layers, None),
            parts.train,
            parts.validation,
            tmp_path / name,
            method=method,
            training=training,
            precision=precision,
        )
        return dict(made.metrics), [made.weights.head.weight, made.weights.head.bias]

    (exact, _), (once, head), (again, same) = (
        train("float32", FLOAT32),
        train("once", BFLOAT16),
        train("again", BFLOAT16),
    )
    assert once == again
    assert all(map(torch.equal, head, same))
    assert (exact[PRECISION_METRIC], once[PRECISION_METRIC]) == (32.0, 16.0)
    assert once["validation"] >= exact["validation"] - 0.1


@pytest.mark.parametrize(
    ("setting", "fast", "expected", "warned"),
    [
        ("auto", True, BFLOAT16, False),
        ("auto", False, FLOAT32, False),
        ("float32", True, FORCED_FLOAT32, False),
        ("bfloat16", True, FORCED_BFLOAT16, False),
        ("bfloat16", False, FORCED_BFLOAT16, True),
    ],
)
def test_the_setting_decides_or_else_the_cpu(
    setting: str,
    fast: bool,
    expected: StepPrecision,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HMI_TRAINING_PRECISION", setting)
    monkeypatch.setattr(precision_module, "multiplies_bfloat16", lambda: fast)
    assert step_precision(TrainingSettings().training_precision) == expected
    assert ("slower than in float32" in caplog.text) == warned


def test_token_classification_is_in_float32_unless_bfloat16_is_forced() -> None:
    tokens, rows = TaskType.TOKEN_CLASSIFICATION, TaskType.SEQUENCE_CLASSIFICATION
    assert BFLOAT16.for_task(tokens) == FLOAT32
    assert BFLOAT16.for_task(rows) == BFLOAT16
    assert FORCED_BFLOAT16.for_task(tokens) == FORCED_BFLOAT16


def test_a_cpu_restricted_to_avx2_has_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not multiplies_bfloat16()


def test_auto_is_the_default() -> None:
    assert TrainingSettings().training_precision == "auto"
