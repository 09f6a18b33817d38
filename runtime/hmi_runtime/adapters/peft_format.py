"""Import of PEFT LoRA folders: adapters trained elsewhere, on the whole unsplit base model.

What is kept is what the upper layers can carry; a difference below the split is refused, for the lower
layers are a table that every tenant shares. The head comes from ``modules_to_save``.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hmi_api.errors import InvalidInput
from hmi_api.task_adapter import Task
from hmi_runtime.adapters.checks import BELOW_SPLIT_WAY_OUT, check_adapter
from hmi_runtime.adapters.peft_config import TENSORS_FILE, LoraSettings
from hmi_runtime.adapters.peft_heads import HeadLayout, head_layout, read_head
from hmi_runtime.adapters.weights import AdapterWeights, LayerAdapter, LoraMatrix
from hmi_runtime.base import MATRICES, NORMS, BaseModel, Encoder
from hmi_runtime.base.families import FAMILIES
from hmi_runtime.base.family import Family

_PREFIX = "base_model.model."
_COPIES = re.compile(r"\.(original_module|modules_to_save(\.default)?)\.")
"""PEFT writes the biases of saved modules a second and third time under these names."""
_LORA = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")


@dataclass
class _Contents:
    """The folder's tensors by what they belong to; LoRA pairs are (a, scaled b)."""

    lora: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # by module path
    plain: dict[str, Tensor] = field(default_factory=dict)  # by parameter path


def import_peft(folder: Path, base: BaseModel, split: int, task: Task) -> AdapterWeights:
    """Return the adapter in a PEFT folder, for upper layers ``split``.. of ``base``.

    Labels are the task's, else those of a config.json (``id2label``) in the folder, else LABEL_0 and on.

    Raises ``InvalidInput``: AdapterNotPeft, AdapterIsPickle, AdapterUnsupported, TaskUnsupported,
    AdapterForAnotherTask, AdapterBelowSplit, AdapterShape, AdapterLabels, HeadIncomplete.
    """
    settings = LoraSettings.read(folder)
    if settings.task not in (None, task.type):
        raise InvalidInput(
            "AdapterForAnotherTask",
            f"The PEFT folder was trained for {settings.task}, the task is {task.type}; change task.type.",
        )
    family = FAMILIES[base.config.family]
    contents = _sort(_read_tensors(folder), settings)
    encoder = base.encoder()
    layout = head_layout(family.name, task.type)
    head = read_head(layout, task.type, _take_head(contents, layout, encoder, family))
    weights = AdapterWeights(
        task=task.type,
        labels=tuple(task.labels) or _labels(folder, head.weight.shape[0]),
        layers=_take_layers(contents, family, encoder, split),
        head=head,
        base_digest=base.digest,
    )
    _refuse_rest(contents, encoder, family)
    check_adapter(weights, base.config, split)
    return weights


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / TENSORS_FILE
    if not path.is_file() and (folder / "adapter_model.bin").is_file():
        raise InvalidInput(
            "AdapterIsPickle",
            "adapter_model.bin is a pickle, which can run code when it is read; "
            "save the adapter again with save_pretrained(..., safe_serialization=True).",
        )
    try:
        return {name: tensor.float() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise InvalidInput(
            "AdapterNotPeft", f"{TENSORS_FILE} cannot be read ({error}); save the adapter again."
        ) from error


def _sort(tensors: Mapping[str, Tensor], settings: LoraSettings) -> _Contents:
    contents, sides = _Contents(), dict[str, dict[str, Tensor]]()
    for name, tensor in tensors.items():
        path = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
        match = _LORA.match(path)
        if match is not None:
            sides.setdefault(match["module"], {})[match["side"]] = tensor
        elif not _COPIES.search(path):
            contents.plain[path] = tensor
    for module, pair in sides.items():
        if pair.keys() != {"A", "B"}:
            raise InvalidInput("AdapterNotPeft", f"{module} has only half a LoRA; save the adapter again.")
        a, b = pair["A"], pair["B"]
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
            raise InvalidInput("AdapterShape", f"The LoRA of {module} is {list(b.shape)} by {list(a.shape)}.")
        contents.lora[module] = (a, b * settings.scale(module, a.shape[0]))
    return contents


def _take_head(
    contents: _Contents, layout: HeadLayout, encoder: Encoder, family: Family
) -> dict[str, Tensor]:
    """Take the head's tensors out of ``contents``; the base's pooler stands in for one that was not saved."""
    found: dict[str, Tensor] = {}
    pooler = f"{family.prefix}{family.pooler}"
    if layout.dense == pooler and encoder.pooler is not None:
        found = {f"{pooler}.weight": encoder.pooler.weight, f"{pooler}.bias": encoder.pooler.bias}
    for module in filter(None, (layout.output, layout.dense)):
        for kind in ("weight", "bias"):
            tensor = contents.plain.pop(f"{module}.{kind}", None)
            if tensor is not None:
                found[f"{module}.{kind}"] = tensor
        lora = contents.lora.pop(module, None)
        if lora is not None and f"{module}.weight" in found:
            # A head is its tenant's own anyway, so a difference in it is simply added up.
            found[f"{module}.weight"] = found[f"{module}.weight"] + _product(module, lora, found)
    return found


def _product(module: str, lora: tuple[Tensor, Tensor], found: Mapping[str, Tensor]) -> Tensor:
    a, b = lora
    expected = found[f"{module}.weight"].shape
    if (b.shape[0], a.shape[1]) != expected:
        raise InvalidInput("AdapterShape", f"The LoRA of {module} does not fit its {list(expected)} weight.")
    return b @ a


def _take_layers(
    contents: _Contents, family: Family, encoder: Encoder, split: int
) -> dict[int, LayerAdapter]:
    """Take every layer's differences out of ``contents``; raise for any that is below the split."""
    layers = {}
    for index in range(encoder.config.layers):
        layer = LayerAdapter(
            lora=_take_lora(contents, family, index),
            bias=_take_biases(contents, family, encoder, index),
            norms=_take_norms(contents, family, encoder, index),
        )
        if not (layer.lora or layer.bias or layer.norms):
            continue
        if index < split:
            raise InvalidInput(
                "AdapterBelowSplit",
                f"The PEFT folder changes layer {index}, below the Domain's split at {split}; "
                f"{BELOW_SPLIT_WAY_OUT}.",
            )
        layers[index] = layer
    return layers


def _take_lora(contents: _Contents, family: Family, index: int) -> dict[str, LoraMatrix]:
    found = {}
    for name in MATRICES:
        pair = contents.lora.pop(family.module_path(index, name), None)
        if pair is not None and bool(pair[1].any()):  # a LoRA whose b is zero changes nothing
            found[name] = LoraMatrix(*pair)
    return found


def _take_biases(contents: _Contents, family: Family, encoder: Encoder, index: int) -> dict[str, Tensor]:
    found = {}
    for name in MATRICES:
        bias = contents.plain.pop(f"{family.module_path(index, name)}.bias", None)
        if bias is not None and not _same(bias, encoder.layers[index].get_parameter(f"{name}.bias")):
            found[name] = bias
    return found


def _take_norms(
    contents: _Contents, family: Family, encoder: Encoder, index: int
) -> dict[str, tuple[Tensor, Tensor]]:
    found = {}
    for name in NORMS:
        base = [encoder.layers[index].get_parameter(f"{name}.{kind}") for kind in ("weight", "bias")]
        path = family.module_path(index, name)
        taken = [
            contents.plain.pop(f"{path}.{kind}", own)
            for kind, own in zip(("weight", "bias"), base, strict=True)
        ]
        if not all(_same(new, own) for new, own in zip(taken, base, strict=True)):
            found[name] = (taken[0], taken[1])
    return found


def _same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are equal to the precision in which checkpoints are stored."""
    return left.shape == right.shape and left.allclose(right, rtol=1e-6, atol=1e-8)


def _refuse_rest(contents: _Contents, encoder: Encoder, family: Family) -> None:
    """Raise for what has no place: other modules, whole matrices, changed embeddings."""
    unchanged = {
        f"{family.prefix}{path}.{kind}": encoder.get_parameter(f"{module}.{kind}")
        for module, path in family.embeddings.items()
        for kind in ("weight", "bias")
        if f"{module}.{kind}" in dict(encoder.named_parameters())
    }
    if encoder.pooler is not None:
        unchanged[f"{family.prefix}{family.pooler}.bias"] = encoder.pooler.bias
    rest = [n for n, t in contents.plain.items() if n not in unchanged or not _same(t, unchanged[n])]
    for name in (*rest, *contents.lora):
        if ".embeddings." in name:
            raise InvalidInput(
                "AdapterBelowSplit",
                f"The PEFT folder changes {name}, which lies below every split; "
                "train here on the task's data.",
            )
        raise InvalidInput(
            "AdapterUnsupported",
            f"The PEFT folder changes {name}, which is no matrix, bias, norm or head of this base model's "
            "layers; target those alone, or train here on the task's data.",
        )


def _labels(folder: Path, count: int) -> tuple[str, ...]:
    """Return the names in the folder's config.json, or transformers' own placeholders."""
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
        return tuple(str(named[str(index)]) for index in range(count))
    except (OSError, ValueError, KeyError, TypeError):
        return tuple(f"LABEL_{index}" for index in range(count))
