"""Import of PEFT LoRA folders: adapters trained elsewhere, on the whole unsplit base model.

Only changes to the upper layers are accepted. A change below the split is refused, since the lower layers are
a table that every tenant shares. The head comes from ``modules_to_save``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from hmi_api.errors import InvalidInput
from hmi_api.resources.task_adapter import Task
from hmi_runtime.adapters.checks import BELOW_SPLIT_ADVICE, check_adapter
from hmi_runtime.adapters.peft.config import LoraSettings
from hmi_runtime.adapters.peft.files import read_tensors, short
from hmi_runtime.adapters.peft.heads import HeadLayout, head_layout, read_head
from hmi_runtime.adapters.peft.origin import check_base_name, check_model, label_names, read_model_config
from hmi_runtime.adapters.weights import AdapterWeights, LayerAdapter, LoraMatrix
from hmi_runtime.models.architecture import MATRICES, NORMS, Family
from hmi_runtime.models.encoder import Encoder
from hmi_runtime.models.families import FAMILIES
from hmi_runtime.models.source import BaseModel

_WRAPPERS = ("_orig_mod", "module")
"""Parts that torch.compile and DistributedDataParallel add to paths; no encoder has such modules."""
_PREFIX = "base_model.model."
_LORA = re.compile(r"\.lora_(?P<side>[AB])(\.(?P<adapter>[^.]+))?\.weight$")
_SAVED = ".modules_to_save."
_ORIGINAL = ".original_module."
_BUFFERS = (".position_ids", ".token_type_ids")


@dataclass
class _Contents:
    """The folder's tensors by module; LoRA pairs are (a, scaled b)."""

    lora: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # by module path
    plain: dict[str, Tensor] = field(default_factory=dict)  # by parameter path


def import_peft(
    folder: Path,
    base: BaseModel,
    split: int,
    task: Task,
    *,
    base_also_named: str | None = None,
    base_revision: str | None = None,
) -> AdapterWeights:
    """Return the adapter in a PEFT folder, for upper layers ``split``.. of ``base``.

    Labels are those of a config.json (``id2label``) in the folder, else the task's, else LABEL_0, LABEL_1...
    ``base_also_named`` and ``base_revision`` are as in ``check_base_name``.

    Raises ``InvalidInput``: AdapterNotPeft, AdapterIsPickle, AdapterUnsupported, AdapterPattern,
    TaskUnsupported, AdapterForAnotherTask, AdapterForAnotherBase, AdapterBelowSplit, AdapterShape,
    AdapterLabels, AdapterNotFinite, HeadIncomplete.
    """
    settings, model = LoraSettings.read(folder), read_model_config(folder)
    if settings.task not in (None, task.type):
        raise InvalidInput(
            "AdapterForAnotherTask",
            f"The PEFT folder was trained for {settings.task}, the task is {task.type}; change task.type.",
        )
    check_base_name(settings, base, also_named=base_also_named, revision=base_revision)
    check_model(model, base)
    family = FAMILIES[base.config.family]
    layout = head_layout(family.name, task.type)
    contents = _sort(read_tensors(folder), settings)
    encoder = base.encoder()
    head = read_head(layout, task.type, _take_head(contents, layout, encoder, family))
    weights = AdapterWeights(
        task=task.type,
        labels=label_names(task.labels, model, head.weight.shape[0]),
        layers=_take_layers(contents, family, encoder, split),
        head=head,
        base_digest=base.digest,
    )
    _refuse_rest(contents, encoder, family)
    check_adapter(weights, base.config, split)
    return weights


def _sort(tensors: Mapping[str, Tensor], settings: LoraSettings) -> _Contents:
    """Sort tensors by module.

    They have the names of peft's ``save_pretrained``, or those of a model's state dict, in which every path
    contains the adapter's name and the base's parameters are included.
    """
    contents, sides = _Contents(), dict[str, dict[str, Tensor]]()
    adapter = _adapter_name(tensors)
    for name, tensor in tensors.items():
        path = _module_path(name, adapter)
        if path is None:
            continue
        match = _LORA.search(path)
        kept = contents.plain if match is None else sides.setdefault(path[: match.start()], {})
        key = path if match is None else match["side"]
        if key in kept and not torch.equal(kept[key], tensor):
            raise InvalidInput(
                "AdapterNotPeft", f"{short(path)} occurs twice with different values; save the adapter again."
            )
        kept[key] = tensor
    pairs = {module: _pair(module, pair) for module, pair in sides.items()}
    scales = settings.scales({module: a.shape[0] for module, (a, _) in pairs.items()})
    contents.lora = {module: (a, b * scales[module]) for module, (a, b) in pairs.items()}
    return contents


def _adapter_name(tensors: Mapping[str, Tensor]) -> str:
    """Return the adapter's name in the paths of a state dict; PEFT's "default" if they contain none."""
    names = {match["adapter"] for match in map(_LORA.search, tensors) if match is not None} - {None}
    if len(names) > 1:
        raise InvalidInput(
            "AdapterUnsupported",
            f"The PEFT folder has {len(names)} adapters ({short(', '.join(sorted(names)))}); save one.",
        )
    return names.pop() if names else "default"


def _module_path(name: str, adapter: str) -> str | None:
    """Return a tensor's path in the task model; None for a tensor of the base model."""
    path = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    path = path.removeprefix(_PREFIX).replace(".base_layer.", ".")
    if _ORIGINAL in path or path.endswith(_BUFFERS):
        return None
    return path.replace(f"{_SAVED}{adapter}.", ".").replace(_SAVED, ".")


def _pair(module: str, pair: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    if pair.keys() != {"A", "B"}:
        raise InvalidInput("AdapterNotPeft", f"{short(module)} has only half a LoRA; save the adapter again.")
    a, b = pair["A"], pair["B"]
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        raise InvalidInput(
            "AdapterShape", f"The LoRA of {short(module)} is {list(b.shape)} by {list(a.shape)}."
        )
    return a, b


def _take_head(
    contents: _Contents, layout: HeadLayout, encoder: Encoder, family: Family
) -> dict[str, Tensor]:
    """Take the head's tensors out of ``contents``; the base's pooler replaces one that was not saved."""
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
            # The head belongs to the tenant, so its LoRA is merged into it.
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
    for index, base in enumerate(encoder.layers):
        paths = {name: family.module_path(index, name) for name in (*MATRICES, *NORMS)}
        layer = _take_layer(contents, paths, base)
        if not (layer.lora or layer.bias or layer.norms):
            continue
        if index < split:
            raise InvalidInput(
                "AdapterBelowSplit",
                f"The PEFT folder changes layer {index}, below the Domain's split at {split}; "
                f"{BELOW_SPLIT_ADVICE}.",
            )
        layers[index] = layer
    return layers


def _take_layer(contents: _Contents, paths: Mapping[str, str], base: nn.Module) -> LayerAdapter:
    """Take what differs from the layer ``base``; ``paths`` of its modules in the folder are by name."""
    lora, biases, norms = {}, {}, {}
    for name in MATRICES:
        pair = contents.lora.pop(paths[name], None)
        if pair is not None and bool(pair[1].any()):  # a LoRA whose b is zero changes nothing
            lora[name] = LoraMatrix(*pair)
        bias = contents.plain.pop(f"{paths[name]}.bias", None)
        if bias is not None and not _same(bias, base.get_parameter(f"{name}.bias")):
            biases[name] = bias
    for name in NORMS:
        own_weight, own_bias = (base.get_parameter(f"{name}.{kind}") for kind in ("weight", "bias"))
        weight = contents.plain.pop(f"{paths[name]}.weight", own_weight)
        bias = contents.plain.pop(f"{paths[name]}.bias", own_bias)
        if not (_same(weight, own_weight) and _same(bias, own_bias)):
            norms[name] = (weight, bias)
    return LayerAdapter(lora=lora, bias=biases, norms=norms)


def _same(left: Tensor, right: Tensor) -> bool:
    """Return whether two tensors are equal to the precision in which checkpoints are stored."""
    return left.shape == right.shape and left.allclose(right, rtol=1e-6, atol=1e-8)


def _refuse_rest(contents: _Contents, encoder: Encoder, family: Family) -> None:
    """Raise for changes that cannot be served: other modules, whole matrices, embeddings."""
    unchanged = _base_parameters(encoder, family)
    if family.counts_from_pad:  # rows before the first position in use are not kept
        position = f"{family.prefix}{family.embeddings['position']}.weight"
        if position in contents.plain:
            contents.plain[position] = contents.plain[position][-encoder.config.positions :]
    rest = [n for n, t in contents.plain.items() if n not in unchanged or not _same(t, unchanged[n])]
    for name in (*rest, *contents.lora):
        if ".embeddings." in name:
            raise InvalidInput(
                "AdapterBelowSplit",
                f"The PEFT folder changes {short(name)}, which lies below every split; "
                "train here on the task's data.",
            )
        raise InvalidInput(
            "AdapterUnsupported",
            f"The PEFT folder changes {short(name)}, which is no matrix, bias, norm or head of this base "
            "model's layers; target those alone, or train here on the task's data.",
        )


def _base_parameters(encoder: Encoder, family: Family) -> dict[str, Tensor]:
    """Return the base's parameters by their paths in the task model; a state dict includes them."""
    paths = {module: f"{family.prefix}{path}" for module, path in family.embeddings.items()}
    for index in range(encoder.config.layers):
        paths |= {f"layers.{index}.{name}": family.module_path(index, name) for name in (*MATRICES, *NORMS)}
    if family.pooler is not None:
        paths["pooler"] = f"{family.prefix}{family.pooler}"
    found: dict[str, Tensor] = {}
    for name, parameter in encoder.named_parameters():
        module, _, kind = name.rpartition(".")
        if module in paths:
            found[f"{paths[module]}.{kind}"] = parameter
    return found
