"""The table: stored outputs of a Domain's lower layers for its frequent windows.

On disk it is one safetensors file, which is memory-mapped: opening a table copies nothing and rebuilds no
index, and processes on one machine share its pages. ``TableWriter`` writes the file in pieces without
holding it in memory. Layout of the format: eight bytes of header length, a JSON header of names, types,
shapes and offsets, then the tensors' bytes one after another.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hmi_api.errors import Damaged
from hmi_api.resources.domain import TableDtype
from hmi_runtime.models.windows import check_vocabulary
from hmi_runtime.tables.index import BUCKET_SLOTS, HashIndex

_TYPE_NAMES = {"int64": "I64", "int32": "I32", "float32": "F32", "float16": "F16", "int8": "I8"}
_ALIGNMENT = 64


TABLE_FILE = "table.safetensors"
_HALF_LIMIT = torch.finfo(torch.float16).max


def allocate(
    path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> dict[str, NDArray[np.generic]]:
    """Create a safetensors file and return its tensors as writable memory-mapped arrays of zeros.

    ``shapes`` gives each tensor's numpy type name and shape. Tensors follow one another without gaps, so put
    wider types first to keep all aligned.
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
    """Flush memory-mapped arrays to their file."""
    for array in arrays.values():
        if isinstance(array, np.memmap):
            array.flush()


def values_offset(path: Path) -> int:
    """Return the offset of the first row's values in a table's file, in bytes."""
    with path.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        header = json.loads(source.read(length))
    return 8 + length + int(header["values"]["data_offsets"][0])


def decode(values: Tensor, scales: Tensor | None, rows: Tensor) -> Tensor:
    """Return the stored ``values`` (N, 3, D) of ``rows`` (N,) in float32; ``scales`` (E, 3) has all rows.

    Row -1 gives arbitrary outputs.
    """
    if scales is None:
        return values.float()
    picked = scales.index_select(0, rows.clamp_min(0).to(scales.device)).to(values.device)
    return values * picked[:, :, None]  # int8 x float32 in one pass


class LookupTable(Protocol):
    """What a lookup needs of a table."""

    @property
    def entries(self) -> int:
        """Number of windows."""

    @property
    def layers_digest(self) -> str:
        """Digest of the layers that made it."""

    def find(self, keys: Tensor) -> Tensor:
        """Return the row (N,) int64 of each key (N,) int64, -1 for a miss."""

    def gather(self, rows: Tensor) -> Tensor:
        """Return the outputs (N, 3, D) float32 of ``rows`` (N,) int64; of row -1 arbitrary ones."""


@dataclass(frozen=True)
class PlotTable:
    """Windows' keys and outputs.

    Row i of every tensor belongs to key i; the most frequent keys come first.
    """

    index: HashIndex
    keys: Tensor  # (E,) int64
    counts: Tensor  # (E,) int64, times seen in the corpus
    values: Tensor  # (E, 3, D) float16, or int8 with scales
    scales: Tensor | None  # (E, 3) float32: an output is its int8 values times its scale
    vocab_size: int
    layers_digest: str

    @classmethod
    def from_outputs(
        cls,
        keys: Tensor,
        outputs: Tensor,
        *,
        vocab_size: int,
        layers_digest: str,
        dtype: TableDtype = TableDtype.FLOAT16,
        counts: Tensor | None = None,
    ) -> "PlotTable":
        """Build a table in memory from unique ``keys`` (E,) int64 and their ``outputs`` (E, 3, D) float32."""
        check_vocabulary(vocab_size)
        values, scales = encode(outputs, dtype)
        return cls(
            index=HashIndex.build(keys),
            keys=keys,
            counts=torch.ones_like(keys) if counts is None else counts,
            values=values,
            scales=scales,
            vocab_size=vocab_size,
            layers_digest=layers_digest,
        )

    @property
    def entries(self) -> int:
        """Number of windows."""
        return len(self.keys)

    @property
    def width(self) -> int:
        """D, the width of one output."""
        return self.values.shape[2]

    def find(self, keys: Tensor) -> Tensor:
        """Return the row (N,) int64 of each key (N,) int64, -1 for a miss."""
        return self.index.find(keys)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the outputs (N, 3, D) float32 of ``rows`` (N,) int64, on the device of the values.

        Row -1 gives arbitrary outputs.
        """
        picked = self.values.index_select(0, rows.clamp_min(0).to(self.values.device))  # (N, 3, D)
        return decode(picked, self.scales, rows)

    def save(self, folder: Path) -> None:
        """Write the table into ``folder``, which must exist."""
        writer = TableWriter(
            folder,
            self.keys,
            self.counts,
            width=self.width,
            dtype=TableDtype.FLOAT16 if self.scales is None else TableDtype.INT8,
            vocab_size=self.vocab_size,
            layers_digest=self.layers_digest,
            index=self.index,
        )
        writer.write_encoded(0, self.values, self.scales)
        writer.close()

    @classmethod
    def load(cls, folder: Path) -> "PlotTable":
        """Memory-map a table that ``save`` or a ``TableWriter`` wrote.

        Raises ``Damaged`` TableInvalid when tensors are missing or do not belong together.
        """
        path = folder / TABLE_FILE
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            table = cls(
                index=HashIndex(tensors["slots"], tensors["slot_rows"], int(metadata["probes"])),
                keys=tensors["keys"],
                counts=tensors["counts"],
                values=tensors["values"],
                scales=tensors.get("scales"),
                vocab_size=int(metadata["vocab_size"]),
                layers_digest=metadata["layers_digest"],
            )
        except (SafetensorError, FileNotFoundError, KeyError, ValueError) as error:
            raise _invalid(path, f"{type(error).__name__}: {error}") from error
        _check(table, path)
        return table


def _check(table: PlotTable, path: Path) -> None:
    entries = table.entries
    shapes = [
        (table.counts, (entries,), {torch.int64}),
        (table.values, (entries, 3, table.values.shape[-1]), {torch.float16, torch.int8}),
        (table.index.slots, (len(table.index.slots), BUCKET_SLOTS), {torch.int64}),
        (table.index.rows, (len(table.index.slots), BUCKET_SLOTS), {torch.int32}),
    ]
    if table.scales is not None:
        shapes.append((table.scales, (entries, 3), {torch.float32}))
    for tensor, shape, dtypes in shapes:
        if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
            raise _invalid(path, f"a tensor is {tensor.dtype} {tuple(tensor.shape)}, expected shape {shape}")
    if (table.values.dtype == torch.int8) != (table.scales is not None):
        raise _invalid(path, "int8 values need scales, and others have none")


def _invalid(path: Path, why: str) -> Damaged:
    return Damaged(
        "TableInvalid", f"{path.name} is not a valid lookup table ({why}); build the Domain's table again."
    )


def encode(outputs: Tensor, dtype: TableDtype) -> tuple[Tensor, Tensor | None]:
    """Return ``outputs`` (N, 3, D) float32 as stored: values (N, 3, D), and scales (N, 3) for int8.

    float16 keeps about three digits; int8 is within half a scale, which is an output's largest magnitude /
    127. Raises ``Damaged`` LayersNotFinite for values that are infinite or NaN: clamped to float16's range
    they would look valid.
    """
    if not torch.isfinite(outputs).all():
        raise Damaged(
            "LayersNotFinite",
            "The Domain's layers output values that are infinite or not numbers; train the Domain again, "
            "with a lower training.learningRate.",
        )
    if dtype is TableDtype.FLOAT16:
        return outputs.clamp(-_HALF_LIMIT, _HALF_LIMIT).half(), None
    scales = outputs.abs().amax(dim=2) / 127  # (N, 3)
    divisor = torch.where(scales > 0, scales, 1.0)[:, :, None]
    return torch.round(outputs / divisor).clamp_(-127, 127).to(torch.int8), scales


class TableWriter:
    """Writes a table with known keys whose outputs are computed batch by batch, in bounded memory."""

    def __init__(
        self,
        folder: Path,
        keys: Tensor,
        counts: Tensor,
        *,
        width: int,
        dtype: TableDtype,
        vocab_size: int,
        layers_digest: str,
        index: HashIndex | None = None,
    ) -> None:
        """Allocate the file in ``folder`` and write ``keys`` and ``counts`` (E,) int64 with their index."""
        check_vocabulary(vocab_size)
        index = index or HashIndex.build(keys)
        self._dtype = dtype
        entries = len(keys)
        scales = {"scales": ("float32", (entries, 3))} if dtype is TableDtype.INT8 else {}
        value_type = "int8" if dtype is TableDtype.INT8 else "float16"
        self._arrays = allocate(
            folder / TABLE_FILE,
            {
                "keys": ("int64", (entries,)),
                "counts": ("int64", (entries,)),
                "slots": ("int64", tuple(index.slots.shape)),
                "slot_rows": ("int32", tuple(index.rows.shape)),
                **scales,
                "values": (value_type, (entries, 3, width)),
            },
            {"vocab_size": str(vocab_size), "layers_digest": layers_digest, "probes": str(index.probes)},
        )
        fixed = {"keys": keys, "counts": counts, "slots": index.slots, "slot_rows": index.rows}
        for name, tensor in fixed.items():
            self._arrays[name][...] = tensor.cpu().numpy()

    def write(self, start: int, outputs: Tensor) -> None:
        """Write ``outputs`` (N, 3, D) float32 to the rows from ``start`` on."""
        self.write_encoded(start, *encode(outputs, self._dtype))

    def write_encoded(self, start: int, values: Tensor, scales: Tensor | None) -> None:
        """Write rows that are already encoded in the table's type."""
        rows = slice(start, start + len(values))
        self._arrays["values"][rows] = values.cpu().numpy()
        if scales is not None:
            self._arrays["scales"][rows] = scales.cpu().numpy()

    def put_encoded(self, rows: Tensor, values: Tensor, scales: Tensor | None) -> None:
        """Write encoded values (N, 3, D), with scales (N, 3) for int8, to ``rows`` (N,) int64."""
        places = rows.cpu().numpy()
        self._arrays["values"][places] = values.cpu().numpy()
        if scales is not None:
            self._arrays["scales"][places] = scales.cpu().numpy()

    def close(self) -> None:
        """Flush everything to the file."""
        flush(self._arrays)
