"""References in plain Python, one window or row at a time, for ``TreeLookup`` and for ``RowTier.admit``."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hmi_api.resources.domain import OnMiss
from hmi_runtime.models.windows import ABSENT, pack
from hmi_runtime.tables.lookup import TreeLookup
from hmi_runtime.tables.table import LookupTable, PlotTable
from hmi_runtime.tables.tiers import TieredTable

Window = tuple[int, int, int]


def lookup_reference(lookup: TreeLookup, windows: Tensor) -> Tensor:
    """Return the outputs (N, 3, D) that ``lookup`` should return for ``windows`` (N, 3) int64."""
    tables = [_whole(table) for table in lookup.tables]
    rows = [_table_rows(table) for table in tables]
    return torch.stack([_look_up_one(lookup, tables, rows, tuple(window)) for window in windows.tolist()])


def _whole(table: LookupTable) -> PlotTable:
    if isinstance(table, TieredTable):
        return table.whole
    if isinstance(table, PlotTable):
        return table
    raise TypeError(f"no reference for {type(table).__name__}")


def _look_up_one(
    lookup: TreeLookup, tables: list[PlotTable], rows: list[dict[int, int]], window: Window
) -> Tensor:
    left, centre, right = window
    forms: list[Window] = [window]
    if lookup.on_miss is OnMiss.BACKOFF:
        forms += [(left, centre, ABSENT), (ABSENT, centre, right), (ABSENT, centre, ABSENT)]
    for table, row_of_key in zip(tables, rows, strict=True):
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


def admit_reference(
    held: Sequence[int], capacity: int, hand: int, rows: Sequence[int], counts: Sequence[int]
) -> tuple[list[int], int]:
    """Return the row in each slot after ``rows`` asked for slots, and where the next comparison begins.

    ``held`` has the rows in slots from 0 on; ``counts`` is how often each row was looked up lately.
    """
    slots = list(held)
    asking = sorted(rows, key=lambda row: -counts[row])
    while asking and len(slots) < capacity:
        slots.append(asking.pop(0))
    if not asking or not slots:
        return slots, hand
    compared = [(hand + step) % len(slots) for step in range(min(len(slots), 4 * len(asking)))]
    weakest = sorted(compared, key=lambda slot: counts[slots[slot]])  # stable: the earlier of equals first
    taken = [
        (slot, row) for slot, row in zip(weakest, asking, strict=False) if counts[row] > counts[slots[slot]]
    ]
    for slot, row in taken:
        slots[slot] = row
    return slots, (compared[-1] + 1) % len(slots)
