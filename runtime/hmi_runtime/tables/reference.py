"""Reference lookup, one window at a time in plain Python. ``TreeLookup`` must return the same."""

import torch
from torch import Tensor

from hmi_api.resources.domain import OnMiss
from hmi_runtime.models.windows import ABSENT, pack
from hmi_runtime.tables.lookup import TreeLookup
from hmi_runtime.tables.table import PlotTable

Window = tuple[int, int, int]


def lookup_reference(lookup: TreeLookup, windows: Tensor) -> Tensor:
    """Return the outputs (N, 3, D) that ``lookup`` should return for ``windows`` (N, 3) int64."""
    rows = [_table_rows(table) for table in lookup.tables]
    return torch.stack([_look_up_one(lookup, rows, tuple(window)) for window in windows.tolist()])


def _look_up_one(lookup: TreeLookup, rows: list[dict[int, int]], window: Window) -> Tensor:
    left, centre, right = window
    forms: list[Window] = [window]
    if lookup.on_miss is OnMiss.BACKOFF:
        forms += [(left, centre, ABSENT), (ABSENT, centre, right), (ABSENT, centre, ABSENT)]
    for table, row_of_key in zip(lookup.tables, rows, strict=True):
        if lookup.on_miss is OnMiss.COMPUTE and table.layers_digest != lookup.layers_digest:
            continue
        for form in forms:
            key = int(pack(torch.tensor([form]), table.vocab_size))
            if key in row_of_key:
                return _stored(table, row_of_key[key])
    with torch.no_grad():
        return lookup.layers.window_outputs(torch.tensor([forms[-1]]))[0]


def _table_rows(table: PlotTable) -> dict[int, int]:
    return {key: row for row, key in enumerate(table.keys.tolist())}


def _stored(table: PlotTable, row: int) -> Tensor:
    """Return one row's outputs (3, D) float32."""
    values = table.values[row].float()
    if table.scales is None:
        return values
    return torch.stack([values[part] * table.scales[row, part] for part in range(3)])
