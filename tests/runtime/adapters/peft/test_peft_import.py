"""Import and export of PEFT folders, compared with the ``peft`` package on small transformers models."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support_peft import MODELS, SEQUENCE, edit_config, make_model, saved_adapter, tune
from torch import Tensor, nn
from transformers import BertModel

from hmi_api.errors import InvalidInput
from hmi_api.resources.task_adapter import Task, TaskType
from hmi_runtime.adapters.checks import check_adapter
from hmi_runtime.adapters.heads import run_head
from hmi_runtime.adapters.peft.exporter import HEAD_FILE, ExportedHead, export_peft
from hmi_runtime.adapters.peft.heads import head_layout
from hmi_runtime.adapters.peft.importer import import_peft
from hmi_runtime.adapters.reference import run_row
from hmi_runtime.adapters.weights import AdapterWeights, Dense, Head, LayerAdapter, LoraMatrix
from hmi_runtime.models.architecture import MATRICES, NORMS
from hmi_runtime.models.encoder import UpperLayers
from hmi_runtime.models.source import BaseModel

# peft reads an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

IDS = torch.tensor([[5, 9, 12, 7, 21], [8, 3, 4, 1, 1]])
LENGTHS = [5, 3]
MASK = torch.arange(5) < torch.tensor(LENGTHS)[:, None]  # (2, 5)


def peft_logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=IDS, attention_mask=MASK.long()).logits
    return logits


def our_logits(base: BaseModel, weights: AdapterWeights) -> list[Tensor]:
    """Run the whole unsplit encoder with the adapter by the reference."""
    encoder = base.encoder()
    hidden = encoder.embed(IDS)
    rows = []
    for row in range(len(IDS)):
        states = run_row(UpperLayers(encoder, 0), weights, hidden[row], MASK[row])
        rows.append(run_head(weights.head, states, MASK[row]))
    return rows


def assert_same_logits(found: list[Tensor], expected: Tensor, *, per_token: bool = False) -> None:
    for row, length in enumerate(LENGTHS):
        kept = slice(length) if per_token else slice(None)
        torch.testing.assert_close(found[row][kept], expected[row][kept], atol=1e-4, rtol=1e-4)


ALL_DENSE = {
    "bert": ["query", "key", "value", "dense"],
    "bert tokens": ["query", "key", "value", "dense"],
    "roberta": ["query", "key", "value", "intermediate.dense", "output.dense"],
    "distilbert": ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"],
}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8},
    "rank stabilised": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "patterns": {"r": 4, "lora_alpha": 8},  # by family, see PATTERNS
    "all biases": {"r": 2, "bias": "all", "layers_to_transform": None},
    "LoRA biases": {"r": 2, "bias": "lora_only"},
}
PATTERNS: dict[str, dict[str, Any]] = {
    "distilbert": {"rank_pattern": {"2.*q_lin": 2}, "alpha_pattern": {"v_lin": 16}},
    "others": {"rank_pattern": {"2.*query": 2}, "alpha_pattern": {"value": 16}},
}


@pytest.mark.parametrize("options", CONFIGS)
@pytest.mark.parametrize("kind", MODELS)
def test_an_imported_adapter_gives_pefts_logits(tmp_path: Path, kind: str, options: str) -> None:
    model, base = make_model(kind, tmp_path / "base")
    tokens = kind == "bert tokens"
    settings = {"target_modules": ALL_DENSE[kind], **CONFIGS[options]}
    if options == "patterns":
        settings |= PATTERNS.get(kind, PATTERNS["others"])
    task_type = "TOKEN_CLS" if tokens else "SEQ_CLS"
    tuned = get_peft_model(model, LoraConfig(task_type=task_type, **settings))
    tune(tuned)
    if options == "all biases":  # those of the embeddings cannot be served; put them back
        restore_embeddings(tuned, base)
    tuned.save_pretrained(tmp_path / "adapter")
    expected = peft_logits(tuned)

    task = TaskType.TOKEN_CLASSIFICATION if tokens else TaskType.SEQUENCE_CLASSIFICATION
    weights = import_peft(tmp_path / "adapter", base, 0, Task(type=task, labels=["a", "b", "c"]))

    assert weights.labels == ("a", "b", "c")
    assert_same_logits(our_logits(base, weights), expected, per_token=tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_import_gives_the_same_answers_once_it_is_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    model, base = make_model("bert", tmp_path / "base")
    settings = LoraConfig(task_type="SEQ_CLS", target_modules=ALL_DENSE["bert"], r=4, lora_alpha=8)
    tuned = get_peft_model(model, settings)
    tune(tuned)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype).float()
    expected = peft_logits(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)

    import_peft(tmp_path / "adapter", base, 0, SEQUENCE).save(tmp_path / "stored")
    stored = AdapterWeights.load(tmp_path / "stored")

    assert stored.layers[0].lora["query"].a.dtype == torch.float16
    for found, logits in zip(our_logits(base, stored.as_float32()), expected, strict=True):
        torch.testing.assert_close(found.softmax(-1), logits.softmax(-1), atol=1e-3, rtol=0)


def restore_embeddings(model: nn.Module, base: BaseModel) -> None:
    norm = next(p for name, p in model.named_parameters() if name.endswith("embeddings.LayerNorm.bias"))
    norm.data.copy_(base.encoder().embedding_norm.bias)


def test_an_adapter_above_the_split_is_accepted(tmp_path: Path) -> None:
    base, folder = saved_adapter(tmp_path, layers_to_transform=[1, 2])
    weights = import_peft(folder, base, 1, SEQUENCE)
    assert sorted(weights.layers) == [1, 2]
    assert weights.layers_digest is None


def test_a_difference_below_the_split_is_refused_with_advice(tmp_path: Path) -> None:
    base, folder = saved_adapter(tmp_path)
    with pytest.raises(
        InvalidInput, match=r"changes layer 0, below .* split at 1.*train here on the task's data"
    ) as e:
        import_peft(folder, base, 1, SEQUENCE)
    assert e.value.reason == "AdapterBelowSplit"


def test_a_difference_of_zero_below_the_split_is_dropped(tmp_path: Path) -> None:
    base, folder = saved_adapter(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    changed = {n: torch.zeros_like(t) if "layer.0" in n and "lora_B" in n else t for n, t in tensors.items()}
    save_file(changed, folder / "adapter_model.safetensors")
    assert sorted(import_peft(folder, base, 1, SEQUENCE).layers) == [1, 2]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "IA3"}, "AdapterUnsupported"),
        ({"use_dora": True}, "AdapterUnsupported"),
        ({"init_lora_weights": "pissa_niter_4"}, "AdapterUnsupported"),
        ({"task_type": "CAUSAL_LM"}, "TaskUnsupported"),
        ({"task_type": "TOKEN_CLS"}, "AdapterForAnotherTask"),
        ({"lora_alpha": "much"}, "AdapterNotPeft"),
    ],
)
def test_unsupported_options_are_refused(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    base, folder = saved_adapter(tmp_path)
    edit_config(folder, **changes)
    with pytest.raises(InvalidInput, match=reason):
        import_peft(folder, base, 0, SEQUENCE)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"target_modules": ["query", "word_embeddings"]}, "AdapterBelowSplit"),
        ({"modules_to_save": ["classifier", "key"]}, "AdapterUnsupported"),
        ({"modules_to_save": ["classifier", "position_embeddings"]}, "AdapterBelowSplit"),
    ],
)
def test_other_modules_are_refused(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    base, folder = saved_adapter(tmp_path, **options)
    with pytest.raises(InvalidInput, match=reason):
        import_peft(folder, base, 0, SEQUENCE)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    base, folder = saved_adapter(tmp_path)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InvalidInput, match="AdapterIsPickle"):
        import_peft(folder, base, 0, SEQUENCE)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("content", [None, b"\x80\x04garbage"])
def test_a_missing_or_broken_file_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    base, folder = saved_adapter(tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=f"AdapterNotPeft: {name}"):
        import_peft(folder, base, 0, SEQUENCE)


def test_an_adapter_for_another_width_is_refused(tmp_path: Path) -> None:
    base, folder = saved_adapter(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    wider = {
        name: torch.nn.functional.pad(t, (0, 8)) if "lora_A" in name else t for name, t in tensors.items()
    }
    save_file(wider, folder / "adapter_model.safetensors")
    with pytest.raises(InvalidInput, match="AdapterShape"):
        import_peft(folder, base, 0, SEQUENCE)


def test_a_head_that_was_not_saved_is_named(tmp_path: Path) -> None:
    base, folder = saved_adapter(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if "classifier" not in n}, folder / "adapter_model.safetensors"
    )
    with pytest.raises(InvalidInput, match=r"HeadIncomplete.*modules_to_save"):
        import_peft(folder, base, 0, SEQUENCE)


def test_labels_come_from_the_folder_when_the_task_names_none(tmp_path: Path) -> None:
    base, folder = saved_adapter(tmp_path)
    unnamed = Task(type=TaskType.SEQUENCE_CLASSIFICATION)
    assert import_peft(folder, base, 0, unnamed).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "x", "1": "y", "2": "z"}}))
    assert import_peft(folder, base, 0, unnamed).labels == ("x", "y", "z")


def test_labels_that_do_not_fit_the_head_are_refused(tmp_path: Path) -> None:
    base, folder = saved_adapter(tmp_path)
    with pytest.raises(InvalidInput, match="AdapterLabels"):
        import_peft(folder, base, 0, Task(type=TaskType.SEQUENCE_CLASSIFICATION, labels=["a", "b"]))


def own_adapter(base: BaseModel, head: Head, task: TaskType) -> AdapterWeights:
    """Return an adapter like a trained one: different ranks by matrix, whole biases and norms."""
    seed = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=seed) * 0.2

    layers = {}
    for index in (1, 2):
        shapes = {name: base.config.matrix_shape(name) for name in MATRICES}
        layers[index] = LayerAdapter(
            lora={
                name: LoraMatrix(normal(2 + i % 3, inner), normal(out, 2 + i % 3))
                for i, (name, (out, inner)) in enumerate(shapes.items())
            },
            bias={name: normal(out) for name, (out, _) in shapes.items()},
            norms={name: (1 + normal(base.config.width), normal(base.config.width)) for name in NORMS},
        )
    weights = AdapterWeights(task, ("a", "b", "c"), layers, head, base.digest)
    check_adapter(weights, base.config, 1, base_digest=base.digest)
    return weights


def sequence_head(activation: Any = "tanh") -> Head:
    seed = torch.Generator().manual_seed(5)
    dense = Dense(torch.randn(16, 16, generator=seed), torch.randn(16, generator=seed), activation)
    return Head("first", torch.randn(3, 16, generator=seed), torch.randn(3, generator=seed), dense)


@pytest.mark.parametrize("kind", MODELS)
def test_peft_loads_what_is_exported_and_gives_the_same_logits(tmp_path: Path, kind: str) -> None:
    model, base = make_model(kind, tmp_path / "base")
    tokens = kind == "bert tokens"
    head = sequence_head("relu" if kind == "distilbert" else "tanh")
    if tokens:
        head = Head("token", head.weight, head.bias)
    task = TaskType.TOKEN_CLASSIFICATION if tokens else TaskType.SEQUENCE_CLASSIFICATION
    weights = own_adapter(base, head, task)

    assert export_peft(weights, base.config.family, tmp_path / "out", "base") is ExportedHead.WHOLE

    loaded = PeftModel.from_pretrained(model, tmp_path / "out")
    assert_same_logits(our_logits(base, weights), peft_logits(loaded), per_token=tokens)


def test_an_exported_adapter_is_imported_unchanged(tmp_path: Path) -> None:
    _, base = make_model("bert", tmp_path / "base")
    weights = own_adapter(base, sequence_head(), TaskType.SEQUENCE_CLASSIFICATION)
    export_peft(weights, "bert", tmp_path / "out")
    found = import_peft(tmp_path / "out", base, 1, SEQUENCE)
    expected = dict(weights.named_tensors())
    assert {name for name, _ in found.named_tensors()} == set(expected)
    for name, tensor in found.named_tensors():
        torch.testing.assert_close(tensor, expected[name])


def test_a_stored_adapter_is_exported_in_float32_and_stored_again_as_it_was(tmp_path: Path) -> None:
    """As peft saves its own: users' code may multiply the tensors with float32 states."""
    _, base = make_model("bert", tmp_path / "base")
    stored = own_adapter(base, sequence_head(), TaskType.SEQUENCE_CLASSIFICATION).as_stored()
    export_peft(stored, "bert", tmp_path / "out")
    exported = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in exported.values()} == {torch.float32}
    found = import_peft(tmp_path / "out", base, 1, SEQUENCE).as_stored()
    expected = dict(stored.named_tensors())
    for name, tensor in found.named_tensors():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])


def test_a_head_without_a_task_model_is_saved_in_its_own_file(tmp_path: Path) -> None:
    model, base = make_model("bert", tmp_path / "base")
    head = Head("first_and_mean", torch.randn(3, 32), torch.randn(3))
    weights = own_adapter(base, head, TaskType.SEQUENCE_CLASSIFICATION)

    assert export_peft(weights, "bert", tmp_path / "out") is ExportedHead.BESIDE

    loaded = PeftModel.from_pretrained(cast(BertModel, model.bert), tmp_path / "out").eval()
    with torch.no_grad():
        states = loaded(input_ids=IDS, attention_mask=MASK.long()).last_hidden_state
    beside = load_file(tmp_path / "out" / HEAD_FILE)
    by_hand = Head("first_and_mean", beside["weight"], beside["bias"])
    expected = torch.stack([run_head(by_hand, states[row], MASK[row]) for row in range(len(IDS))])
    assert_same_logits(our_logits(base, weights), expected)


@pytest.mark.parametrize("task", [TaskType.SEQUENCE_CLASSIFICATION, TaskType.TOKEN_CLASSIFICATION])
def test_an_unsupported_family_is_refused(task: TaskType) -> None:
    with pytest.raises(InvalidInput, match=r"AdapterUnsupported.*not modernbert"):
        head_layout("modernbert", task)
