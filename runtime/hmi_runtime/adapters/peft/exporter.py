"""Export to PEFT LoRA folders, which the ``peft`` package loads onto transformers' own task models.

A token head, or a head with a dense layer over the first token, is saved whole in ``modules_to_save``. The
default sequence head reads the first token *and* the mean, which no task model of transformers does: then the
folder has the LoRA for the plain encoder (``AutoModel``), and the head is a separate file,
``hmi_head.safetensors`` (``weight`` (n, 2D), ``bias`` (n,), over the first token's state and the mean over
unpadded tokens; labels and pooling in its header).

Tensors are float32, as ``peft`` itself saves them: code that multiplies the head's weight with float32 states
would fail on half precision.
"""

import json
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from hmi_api.errors import InvalidInput
from hmi_runtime.adapters.peft.config import TASK_TYPES
from hmi_runtime.adapters.peft.files import CONFIG_FILE, TENSORS_FILE
from hmi_runtime.adapters.peft.heads import PEFT_FAMILIES, head_layout, head_tensors
from hmi_runtime.adapters.weights import AdapterWeights, Head
from hmi_runtime.models.architecture import MATRICES, NORMS, Family
from hmi_runtime.models.families import FAMILIES

HEAD_FILE = "hmi_head.safetensors"

_TASK_NAMES = {task: name for name, task in TASK_TYPES.items()}


class ExportedHead(StrEnum):
    """Where an exported adapter's head is."""

    WHOLE = "whole"
    """In the PEFT folder's own tensors: ``peft`` gives the same logits."""
    BESIDE = "beside"
    """In ``hmi_head.safetensors``: ``peft`` gives the hidden states, and the user applies the head."""


def export_peft(weights: AdapterWeights, family: str, folder: Path, base_name: str = "") -> ExportedHead:
    """Write ``weights`` as a PEFT folder for a base model of ``family``; return where the head went.

    ``base_name`` is what ``peft`` will load the base from. Raises ``InvalidInput`` NotExportable for
    bottleneck adapters, which PEFT's LoRA format does not have, and for families not in ``PEFT_FAMILIES``.

    The adapter was trained on a Domain's layers, which only imitate the base model's lower layers: on the
    unsplit base model its results differ by more than rounding.
    """
    if family not in PEFT_FAMILIES:
        raise InvalidInput(
            "NotExportable",
            f"PEFT folders are written for {', '.join(sorted(PEFT_FAMILIES))}, not {family} yet.",
        )
    if weights.bottleneck_width or not weights.rank:
        raise InvalidInput(
            "NotExportable",
            "PEFT folders can have LoRA only; train the task with method.type LoRA to export it.",
        )
    layout = head_layout(family, weights.task)
    head = head_tensors(layout, weights.head)
    # The plain encoder's modules are named without the task model's prefix.
    contents = _layer_contents(weights, FAMILIES[family], "" if head is not None else FAMILIES[family].prefix)
    contents.tensors.update(head or {})
    contents.saved.extend(layout.saved if head is not None else ())
    task = _TASK_NAMES[weights.task] if head is not None else "FEATURE_EXTRACTION"
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps(_config(contents, task, base_name), indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")
    _save({f"base_model.model.{name}": t for name, t in contents.tensors.items()}, folder / TENSORS_FILE)
    if head is not None:
        return ExportedHead.WHOLE
    header = {"hmi": json.dumps({"labels": weights.labels, "pooling": weights.head.pooling})}
    _save(_head_by_name(weights.head), folder / HEAD_FILE, header)
    return ExportedHead.BESIDE


@dataclass
class _Contents:
    """The contents of the folder."""

    ranks: dict[str, int] = field(default_factory=dict)  # by module path
    tensors: dict[str, Tensor] = field(default_factory=dict)  # by parameter path
    saved: list[str] = field(default_factory=list)  # modules kept whole


def _layer_contents(weights: AdapterWeights, family: Family, prefix: str) -> _Contents:
    contents = _Contents()
    for index, layer in weights.layers.items():
        paths = {name: family.module_path(index, name).removeprefix(prefix) for name in (*MATRICES, *NORMS)}
        for name, lora in layer.lora.items():
            contents.ranks[paths[name]] = lora.rank
            contents.tensors[f"{paths[name]}.lora_A.weight"] = lora.a
            contents.tensors[f"{paths[name]}.lora_B.weight"] = lora.b
        for name, bias in layer.bias.items():
            # PEFT wraps the matrices it adapts, and their own parameters move one name down.
            wrapped = ".base_layer" if name in layer.lora else ""
            contents.tensors[f"{paths[name]}{wrapped}.bias"] = bias
        for name, (weight, bias) in layer.norms.items():
            contents.saved.append(paths[name])
            contents.tensors[f"{paths[name]}.weight"] = weight
            contents.tensors[f"{paths[name]}.bias"] = bias
    return contents


def _config(contents: _Contents, task: str, base_name: str) -> dict[str, Any]:
    rank = max(contents.ranks.values())
    others = {path: own for path, own in contents.ranks.items() if own != rank}
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,  # every scale is folded into b, so alpha / r is 1 everywhere
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "all" if any(name.endswith(".bias") for name in contents.tensors) else "none",
        "target_modules": sorted(contents.ranks),
        "modules_to_save": contents.saved or None,
    }


def _head_by_name(head: Head) -> dict[str, Tensor]:
    named = {"weight": head.weight, "bias": head.bias}
    if head.dense is not None:
        named |= {"dense.weight": head.dense.weight, "dense.bias": head.dense.bias}
    return named


def _save(tensors: dict[str, Tensor], path: Path, header: dict[str, str] | None = None) -> None:
    contiguous = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt", **(header or {})})
