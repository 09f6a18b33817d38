"""The tables benchmark: the parts of a round are counted, and the report is complete."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hmi_bench.serving.hmi import BERT_BASE
from hmi_bench.tables.benchmark import run_tables
from hmi_bench.tables.contender import Contender, TablesPlan, write_table
from hmi_runtime.tables.table import PlotTable

SMALL = replace(BERT_BASE, layers=2, width=24, heads=2, ffn_width=40, vocab_size=500)
PLAN = TablesPlan(
    windows=3000, batch=2, batches=3, rounds=1, precision="float32", threads=1, config=SMALL, processes=False
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    write_table(tmp_path, PLAN)
    return tmp_path


def test_a_round_finds_every_window_in_memory_or_on_disk(folder: Path) -> None:
    contender = Contender(PLAN)
    contender.open(folder, 0.1)
    done = contender.run(1)
    assert done.in_memory > done.on_disk > 0
    assert done.bytes_read > 0
    again = contender.run(1)
    assert again.in_memory + again.on_disk == done.in_memory + done.on_disk
    whole = Contender(PLAN)
    whole.open(folder, 1.0)
    assert whole.run(1).on_disk == 0


def test_the_table_has_different_windows_most_frequent_first(folder: Path) -> None:
    table = PlotTable.load(folder)
    assert table.entries == len(table.keys.unique()) == PLAN.windows
    assert (table.counts.diff() <= 0).all()


def test_the_report_compares_both_and_removes_the_table(tmp_path: Path) -> None:
    report = run_tables(tmp_path / "out", replace(PLAN, folder=tmp_path / "made"))
    assert "all in memory" in report
    assert "a part in memory" in report
    figures = json.loads((tmp_path / "out" / "tables.json").read_text())
    assert figures["ratio"] > 0
    assert [one["rows read from disk a batch"] > 0 for one in figures["contenders"]] == [False, True]
    assert list((tmp_path / "made").iterdir()) == []
