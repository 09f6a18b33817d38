"""The files of a PEFT folder, read within bounds: their owners are tenants."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from hmi_api.errors import InvalidInput
from hmi_runtime.library_errors import invalid_if_damaged
from hmi_runtime.models.weights import LFS_POINTER_ADVICE, is_lfs_pointer

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
MODEL_CONFIG_FILE = "config.json"

MAX_FILE_BYTES = {CONFIG_FILE: 1 << 20, MODEL_CONFIG_FILE: 4 << 20, TENSORS_FILE: 1 << 30}
"""Most bytes that are read of each file; a LoRA of rank 64 on all matrices of a large encoder has 0.1 GiB."""
_LARGEST_HEADER = 8 << 20
_LONGEST_NAME = 200
_KINDS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in one of the folder's JSON files.

    Raises ``InvalidInput`` AdapterNotPeft if it is missing, too large, a git-lfs pointer, not a JSON object
    or nested too deeply.
    """
    advice = "give a folder that save_pretrained of peft wrote."
    with invalid_if_damaged("AdapterNotPeft", path.name, advice):
        check_size(path.name, path.stat().st_size)
        if is_lfs_pointer(path):
            raise InvalidInput("AdapterNotPeft", f"{path.name} {LFS_POINTER_ADVICE}.")
        read = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(read, dict):
        raise InvalidInput("AdapterNotPeft", f"{path.name} is not a JSON object.")
    return read


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the folder's tensors by name, float32.

    Raises ``InvalidInput``: AdapterIsPickle; AdapterNotPeft where the file is missing, broken, a git-lfs
    pointer or too large; AdapterShape for a tensor without values, AdapterUnsupported for one of integers,
    AdapterNotFinite.
    """
    path = folder / TENSORS_FILE
    if not path.is_file() and (folder / PICKLE_FILE).is_file():
        raise is_pickle()
    with invalid_if_damaged("AdapterNotPeft", TENSORS_FILE, "save the adapter again."):
        check_size(path.name, path.stat().st_size)
        if is_lfs_pointer(path):
            raise InvalidInput("AdapterNotPeft", f"{TENSORS_FILE} {LFS_POINTER_ADVICE}.")
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            tensors = {name: _float(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    return tensors


def check_size(name: str, size: int) -> None:
    """Raise ``InvalidInput`` AdapterNotPeft when a file of that name has more bytes than are read."""
    if size > MAX_FILE_BYTES[name]:
        raise InvalidInput(
            "AdapterNotPeft",
            f"{name} has {size} bytes, {MAX_FILE_BYTES[name]} are read at most; give the adapter alone, as "
            "save_pretrained of peft writes it.",
        )


def is_pickle() -> InvalidInput:
    """Return the error for a folder whose weights are a pickle."""
    return InvalidInput(
        "AdapterIsPickle",
        f"{PICKLE_FILE} is a pickle, which can run code when it is read; save the adapter again with "
        "save_pretrained(..., safe_serialization=True).",
    )


def short(name: str) -> str:
    """Return ``name``, cut if it is too long for a message."""
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."


def _check_header(path: Path) -> None:
    """Raise for a header that would take long to read; safetensors itself takes up to 100 MB."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _LARGEST_HEADER:
        raise InvalidInput(
            "AdapterNotPeft",
            f"{TENSORS_FILE} has a header of {length} bytes, {_LARGEST_HEADER} are read at most: it is not "
            "a safetensors file, or has far more than an adapter; save the adapter again.",
        )


def _float(name: str, tensor: Tensor) -> Tensor:
    if not tensor.numel():
        raise InvalidInput(
            "AdapterShape",
            f"{short(name)} has shape {list(tensor.shape)}, so it has no values. A trainer that shards "
            "weights (DeepSpeed ZeRO-3, FSDP) writes such tensors when it saves before it gathers: gather "
            "them (stage3_gather_16bit_weights_on_model_save, or a full state dict) and save again.",
        )
    if tensor.dtype not in _KINDS:
        raise InvalidInput(
            "AdapterUnsupported",
            f"{short(name)} is of type {tensor.dtype}; save the adapter as float32, float16 or bfloat16.",
        )
    values = tensor.float()
    if not torch.isfinite(values).all():
        raise InvalidInput(
            "AdapterNotFinite",
            f"{short(name)} has values that are infinite or not numbers; train again with a lower learning "
            "rate, and in float32 or bfloat16 if it was float16.",
        )
    return values
