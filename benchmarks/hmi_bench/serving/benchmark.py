"""Serving benchmark: every system at several batch sizes; each is compared at its best."""

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from transformers import BertConfig

from hmi_bench import results
from hmi_bench.serving.hmi import BERT_BASE, HierarchicalRuntime, Shared
from hmi_bench.serving.systems import (
    OnnxWhole,
    PeftMixed,
    ServingSystem,
    Swapping,
    make_batch,
)
from hmi_bench.texts import text_lengths
from hmi_bench.timing import Timing, time_in_turns

log = logging.getLogger(__name__)

LIMIT = "HMI float32, no adapters (the limit)"
OURS = "HMI float32, LoRA 16 a row"
OURS_INT8 = "HMI int8, LoRA 16 a row"
PEFT = "PEFT mixed batch"
SWAPPING = "model swapping"
ONNX_INT8 = "ONNX Runtime, one whole model, int8"


def run_serving(out: Path, *, batch_sizes: tuple[int, ...], rounds: int, threads: int) -> str:
    """Time all systems, write ``serving.json`` and plots under ``out``, and return the table."""
    torch.set_num_threads(threads)
    largest = max(batch_sizes)
    systems = make_systems(largest, threads)
    timings: list[Timing] = []
    for size in batch_sizes:
        batch = make_batch(text_lengths(size), BERT_BASE.vocab_size, seed=size)
        for system in systems:
            system.prepare(batch)
        ways = {system.name: partial(system.serve, batch) for system in systems}
        timings += time_in_turns(ways, size, rounds=rounds)
        log.info("batch %d measured", size)
    best = {
        system.name: max((t for t in timings if t.name == system.name), key=_rows_a_second)
        for system in systems
    }
    sizes = {system.name: system.bytes_a_tenant for system in systems}
    ratios = _ratios(timings, best, largest)
    results.write_json(
        out / "serving.json",
        timings=[asdict(timing) for timing in timings],
        bytes_a_tenant=sizes,
        ratios=ratios,
    )
    rate = {name: _rows_a_second(timing) for name, timing in best.items()}
    results.bars(out / "serving.png", "Rows a second, each at its best batch size", "rows a second", rate)
    ratio_table = results.table({"ratio": name, "value": value} for name, value in ratios.items())
    return _table(timings, best, sizes, largest) + "\n\n" + ratio_table


def _rows_a_second(timing: Timing) -> float:
    return timing.size / timing.median


def make_systems(rows: int, threads: int) -> list[ServingSystem]:
    """Return all systems, with enough tenants for ``rows`` different ones."""
    shared = Shared.make()
    config = BertConfig(num_hidden_layers=BERT_BASE.layers)
    return [
        HierarchicalRuntime(shared, rank=None, rows=rows),
        HierarchicalRuntime(shared, rank=16, rows=rows),
        HierarchicalRuntime(shared, rank=32, rows=rows),
        HierarchicalRuntime(shared, rank=16, rows=rows, found=0.9),
        HierarchicalRuntime(shared, rank=None, rows=rows, precision="int8"),
        HierarchicalRuntime(shared, rank=16, rows=rows, precision="int8"),
        PeftMixed(config, 16, rows),
        PeftMixed(config, 16, rows, first_layer=BERT_BASE.layers // 2),
        # With eight sets of weights, every row's weights come from memory, not from the CPU's cache.
        Swapping(config, 8, resident=False),
        Swapping(config, 8, resident=True),
        OnnxWhole(config, int8=False, threads=threads),
        OnnxWhole(config, int8=True, threads=threads),
    ]


def _ratios(timings: list[Timing], best: dict[str, Timing], largest: int) -> dict[str, float]:
    """Return ratios of systems, each at its best batch size; the limit is compared at ``largest``."""
    rate = {name: _rows_a_second(timing) for name, timing in best.items()}
    at_largest = {t.name: t.median for t in timings if t.size == largest}
    ours = (OURS, OURS_INT8)
    return {
        f"time over the limit, rank 16, batch {largest}": at_largest[OURS] / at_largest[LIMIT] - 1,
        **{
            f"throughput, {name} / {peer}": rate[name] / rate[peer]
            for name in ours
            for peer in (PEFT, SWAPPING)
        },
        f"throughput, {OURS_INT8} / {ONNX_INT8}": rate[OURS_INT8] / rate[ONNX_INT8],
        f"response time of a batch of {largest}, {SWAPPING} / {OURS}": at_largest[SWAPPING]
        / at_largest[OURS],
    }


def _table(timings: list[Timing], best: dict[str, Timing], sizes: dict[str, int], largest: int) -> str:
    at_largest = {t.name: t.median for t in timings if t.size == largest}
    return results.table(
        {
            "system": name,
            f"ms, batch of {largest}": at_largest[name] * 1000,
            "rows/s at its best": _rows_a_second(timing),
            "best batch": timing.size,
            "MB a tenant": sizes[name] / 1e6,
        }
        for name, timing in best.items()
    )
