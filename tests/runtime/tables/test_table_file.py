"""A table returns its rows, from memory and from disk, within its type's tolerance."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hmi_api.errors import Damaged
from hmi_api.resources.domain import TableDtype
from hmi_runtime.tables.table import TABLE_FILE, PlotTable, encode

VOCABULARY = 50
LAYERS = "sha256:" + "1" * 64
BOTH = pytest.mark.parametrize("dtype", list(TableDtype))


def make_table(entries: int, dtype: TableDtype, seed: int = 0) -> tuple[PlotTable, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randperm((VOCABULARY + 1) ** 3, generator=generator)[:entries]
    outputs = torch.randn(entries, 3, 8, generator=generator)
    table = PlotTable.from_outputs(
        keys, outputs, vocab_size=VOCABULARY, layers_digest=LAYERS, dtype=dtype, counts=torch.arange(entries)
    )
    return table, outputs


@BOTH
@pytest.mark.parametrize("entries", [0, 1, 100])
def test_a_saved_table_is_loaded_unchanged(dtype: TableDtype, entries: int, tmp_path: Path) -> None:
    table, _ = make_table(entries, dtype)
    table.save(tmp_path)
    again = PlotTable.load(tmp_path)
    assert (again.vocab_size, again.layers_digest) == (VOCABULARY, LAYERS)
    assert (again.entries, again.width) == (entries, 8)
    for name in ("keys", "counts", "values"):
        assert torch.equal(getattr(again, name), getattr(table, name))
    rows = again.find(table.keys)
    assert rows.tolist() == list(range(entries))
    assert torch.equal(again.gather(rows), table.gather(rows))


@BOTH
def test_the_file_is_plain_safetensors(dtype: TableDtype, tmp_path: Path) -> None:
    table, _ = make_table(20, dtype)
    table.save(tmp_path)
    assert torch.equal(load_file(tmp_path / TABLE_FILE)["values"], table.values)


def test_opening_a_table_maps_it(tmp_path: Path) -> None:
    make_table(100, TableDtype.FLOAT16)[0].save(tmp_path)
    table = PlotTable.load(tmp_path)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not list its mappings")
    spans = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in maps.read_text().splitlines()
        if str(tmp_path / TABLE_FILE) in line
    ]
    for tensor in (table.values, table.keys, table.index.slots, table.index.rows):
        assert any(start <= tensor.data_ptr() < end for start, end in spans)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), magnitude=st.sampled_from([0.0, 1e-6, 1.0, 300.0]))
def test_stored_values_are_within_tolerance(seed: int, magnitude: float) -> None:
    outputs = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(seed)) * magnitude
    half, none = encode(outputs, TableDtype.FLOAT16)
    assert none is None
    assert torch.all((half.float() - outputs).abs() <= outputs.abs() * 2**-11 + 2**-25)
    whole, scales = encode(outputs, TableDtype.INT8)
    assert scales is not None
    error = (whole * scales[:, :, None] - outputs).abs()
    assert torch.all(error <= scales[:, :, None] * (0.5 + 1e-4))


def test_values_too_large_for_float16_stay_finite() -> None:
    half, _ = encode(torch.full((1, 3, 2), 1e6), TableDtype.FLOAT16)
    assert torch.isfinite(half).all()


def damage(folder: Path, change: dict[str, torch.Tensor | None], metadata: dict[str, str] | None) -> None:
    tensors: dict[str, torch.Tensor | None] = {**load_file(folder / TABLE_FILE), **change}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / TABLE_FILE, metadata=metadata)


@pytest.mark.parametrize(
    ("change", "metadata"),
    [
        ({"slots": None}, {"vocab_size": "50", "layers_digest": "x", "probes": "1"}),
        ({"values": torch.zeros(9, 3, 8).half()}, {"vocab_size": "50", "layers_digest": "x", "probes": "1"}),
        ({"values": torch.zeros(10, 3, 8).char()}, {"vocab_size": "50", "layers_digest": "x", "probes": "1"}),
        ({"values": torch.zeros(10)}, {"vocab_size": "50", "layers_digest": "x", "probes": "1"}),
        ({}, {"vocab_size": "many", "layers_digest": "x", "probes": "1"}),
        ({}, None),
    ],
)
def test_an_invalid_table_file_is_refused(
    tmp_path: Path, change: dict[str, torch.Tensor | None], metadata: dict[str, str] | None
) -> None:
    make_table(10, TableDtype.FLOAT16)[0].save(tmp_path)
    damage(tmp_path, change, metadata)
    with pytest.raises(Damaged, match="TableInvalid"):
        PlotTable.load(tmp_path)


def test_a_missing_or_truncated_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="TableInvalid"):
        PlotTable.load(tmp_path)
    make_table(10, TableDtype.FLOAT16)[0].save(tmp_path)
    (tmp_path / TABLE_FILE).write_bytes((tmp_path / TABLE_FILE).read_bytes()[:-1])
    with pytest.raises(Damaged, match="TableInvalid"):
        PlotTable.load(tmp_path)
