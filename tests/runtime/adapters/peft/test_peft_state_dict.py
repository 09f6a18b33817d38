"""Adapters saved as a model's state dict, not by save_pretrained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support_peft import MODELS, make_model, saved_adapter, tune
from torch import Tensor

from hmi_api.errors import InvalidInput
from hmi_api.resources.task_adapter import Task, TaskType
from hmi_runtime.adapters.peft.files import TENSORS_FILE
from hmi_runtime.adapters.peft.importer import import_peft
from hmi_runtime.models.source import BaseModel

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SEQUENCE = Task(type=TaskType.SEQUENCE_CLASSIFICATION)
TOKENS = Task(type=TaskType.TOKEN_CLASSIFICATION)

NAMES: dict[str, Callable[[str], str]] = {
    "plain": lambda name: name,
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled inside": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    "distributed": lambda name: f"module.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
}


def tuned_model(tmp_path: Path, kind: str, adapter: str, **options: Any) -> tuple[PeftModel, BaseModel]:
    model, base = make_model(kind, tmp_path / "base")
    names = ["q_lin", "v_lin"] if kind == "distilbert" else ["query", "value"]
    task = "TOKEN_CLS" if kind == "bert tokens" else "SEQ_CLS"
    config = LoraConfig(task_type=task, r=4, target_modules=names, **options)
    tuned = get_peft_model(model, config, adapter_name=adapter)
    tune(tuned)
    tuned.save_pretrained(tmp_path / "saved")
    saved = tmp_path / "saved" if adapter == "default" else tmp_path / "saved" / adapter
    saved.rename(tmp_path / "adapter")
    return tuned, base


@pytest.mark.parametrize("adapter", ["default", "mine"])
@pytest.mark.parametrize("naming", NAMES)
@pytest.mark.parametrize("kind", MODELS)
def test_the_adapter_in_a_whole_state_dict_is_read(
    tmp_path: Path, kind: str, naming: str, adapter: str
) -> None:
    tuned, base = tuned_model(tmp_path, kind, adapter)
    folder, task = tmp_path / "adapter", TOKENS if kind == "bert tokens" else SEQUENCE
    expected = dict(import_peft(folder, base, 0, task).named_tensors())
    state = {NAMES[naming](name): tensor.clone() for name, tensor in tuned.state_dict().items()}
    assert any(f".modules_to_save.{adapter}." in name for name in state)
    save_file(state, folder / TENSORS_FILE)

    found = dict(import_peft(folder, base, 0, task).named_tensors())

    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def renamed(folder: Path, rename: Callable[[str], str], **more: Tensor) -> None:
    tensors = {rename(name): tensor for name, tensor in load_file(folder / TENSORS_FILE).items()}
    save_file({**tensors, **more}, folder / TENSORS_FILE)


def test_a_lora_of_the_head_is_added_to_it(tmp_path: Path) -> None:
    base, folder = saved_adapter(tmp_path)
    plain = import_peft(folder, base, 0, SEQUENCE).head.weight
    a, b = torch.randn(2, 16), torch.randn(3, 2)
    renamed(
        folder,
        lambda name: name.replace("classifier.", "classifier.modules_to_save.default."),
        **{
            "base_model.model.classifier.lora_A.default.weight": a,
            "base_model.model.classifier.lora_B.default.weight": b,
        },
    )
    found = import_peft(folder, base, 0, SEQUENCE).head.weight
    torch.testing.assert_close(found, plain + b @ a * (8 / 2))  # alpha is 8


def test_two_adapters_in_one_file_are_refused(tmp_path: Path) -> None:
    base, folder = saved_adapter(tmp_path)
    layer = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_"
    more = {f"{layer}A.other.weight": torch.ones(4, 16), f"{layer}B.other.weight": torch.ones(16, 4)}
    renamed(folder, lambda name: name.replace("_A.", "_A.mine.").replace("_B.", "_B.mine."), **more)
    with pytest.raises(InvalidInput, match=r"AdapterUnsupported.*2 adapters \(mine, other\)"):
        import_peft(folder, base, 0, SEQUENCE)


def test_a_duplicate_tensor_with_different_values_is_refused(tmp_path: Path) -> None:
    base, folder = saved_adapter(tmp_path)
    renamed(folder, lambda name: name, **{"base_model.model.classifier.modules_to_save.bias": torch.ones(3)})
    with pytest.raises(InvalidInput, match=r"AdapterNotPeft: classifier.bias occurs twice"):
        import_peft(folder, base, 0, SEQUENCE)


def test_a_changed_base_model_is_refused(tmp_path: Path) -> None:
    """A state dict includes the base; if that is not the Domain's, the adapter does not fit."""
    tuned, base = tuned_model(tmp_path, "bert", "default")
    state = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    (changed,) = [name for name in state if name.endswith("layer.2.intermediate.dense.weight")]
    state[changed] += 0.1
    save_file(state, tmp_path / "adapter" / TENSORS_FILE)
    with pytest.raises(InvalidInput, match=r"AdapterUnsupported.*layer\.2\.intermediate\.dense\.weight"):
        import_peft(tmp_path / "adapter", base, 0, SEQUENCE)
