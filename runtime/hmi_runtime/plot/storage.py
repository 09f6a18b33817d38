"""Writing a safetensors file of known sizes piece by piece, without holding it in memory.

The layout is that of the safetensors format: eight bytes of header length, a JSON header of names,
types, shapes and offsets, then the tensors' bytes one after another.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_TYPE_NAMES = {"int64": "I64", "int32": "I32", "float32": "F32", "float16": "F16", "int8": "I8"}
_ALIGNMENT = 64


def allocate(
    path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> dict[str, NDArray[np.generic]]:
    """Make a safetensors file and return its tensors as writable arrays mapped from it, all zero.

    ``shapes`` gives each tensor's numpy type name and shape. Give wider types first: tensors follow one
    another without gaps, so this order is what keeps each one aligned.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape) in shapes.items():
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": _TYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header, sort_keys=False, separators=(",", ":")).encode()
    encoded += b" " * (-(len(encoded) + 8) % _ALIGNMENT)
    with path.open("wb") as target:
        target.write(len(encoded).to_bytes(8, "little") + encoded)
        target.truncate(8 + len(encoded) + offset)
    start = 8 + len(encoded)
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, (dtype, shape) in shapes.items():
        if np.prod(shape, dtype=np.int64) == 0:  # nothing to map
            arrays[name] = np.zeros(shape, dtype)
            continue
        arrays[name] = np.memmap(path, dtype=dtype, mode="r+", offset=start, shape=shape)
        start += arrays[name].nbytes
    return arrays


def flush(arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Write mapped arrays through to their file."""
    for array in arrays.values():
        if isinstance(array, np.memmap):
            array.flush()
