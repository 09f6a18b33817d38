"""Serving benchmark: every system at several batch sizes; each is compared at its best."""

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from transformers import BertConfig

from hmi_bench import results
from hmi_bench.serving.hmi import BERT_BASE, HierarchicalRuntime, Shared, system_name
from hmi_bench.serving.onnx import OnnxWhole
from hmi_bench.serving.openvino import OpenVinoWhole
from hmi_bench.serving.peft import PeftMixed
from hmi_bench.serving.systems import ServingSystem, StoredModels, Swapping, make_batch
from hmi_bench.texts import text_lengths
from hmi_bench.timing import Timing, time_in_turns
from hmi_runtime.adapters.frozen import Precision
from hmi_runtime.adapters.kernels import available_kernels

log = logging.getLogger(__name__)

PRECISIONS: tuple[Precision, ...] = tuple(
    dict.fromkeys(kernel.precision for kernel in available_kernels(torch.device("cpu")))
)
RANK = 16
PEFT = "PEFT mixed batch"
SWAPPING = "model swapping"
ONNX_FLOAT32 = "ONNX Runtime, one whole model, float32"
ONNX_INT8 = "ONNX Runtime, one whole model, int8"
OPENVINO_INT8 = "OpenVINO, one whole model, int8 by NNCF"


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
    # With eight sets of weights, every row's weights come from memory, not from the CPU's cache.
    stored = StoredModels(config, 8)
    return [
        *(
            HierarchicalRuntime(shared, rank=rank, rows=rows, precision=precision)
            for precision in PRECISIONS
            for rank in (None, RANK)
        ),
        HierarchicalRuntime(shared, rank=2 * RANK, rows=rows),
        HierarchicalRuntime(shared, rank=RANK, rows=rows, found=0.9),
        PeftMixed(config, 16, rows),
        PeftMixed(config, 16, rows, first_layer=BERT_BASE.layers // 2),
        Swapping(stored, resident=False),
        Swapping(stored, resident=True),
        OnnxWhole(config, int8=False, threads=threads),
        OnnxWhole(config, int8=True, threads=threads),
        OpenVinoWhole(config, precision="float32", threads=threads),
        OpenVinoWhole(config, precision="bfloat16", threads=threads),
        OpenVinoWhole(config, precision="int8", threads=threads),
    ]


def _ratios(timings: list[Timing], best: dict[str, Timing], largest: int) -> dict[str, float]:
    """Return ratios of systems, each at its best batch size; response times are compared at ``largest``."""
    rate = {name: _rows_a_second(timing) for name, timing in best.items()}
    at_largest = {t.name: t.median for t in timings if t.size == largest}
    ours = {precision: system_name(precision, RANK) for precision in PRECISIONS}
    fastest = max(ours.values(), key=lambda name: rate[name])
    over = {
        precision: at_largest[name] / at_largest[system_name(precision, None)] - 1
        for precision, name in ours.items()
    }
    return {
        **{
            f"time over the limit, {precision}, rank {RANK}, batch {largest}": share
            for precision, share in over.items()
        },
        **{
            f"throughput, {name} / {peer}": rate[name] / rate[peer]
            for name in dict.fromkeys([ours["float32"], fastest])
            for peer in (PEFT, SWAPPING)
        },
        f"throughput, {ours['float32']} / {ONNX_FLOAT32}": rate[ours["float32"]] / rate[ONNX_FLOAT32],
        f"throughput, {fastest} / {ONNX_INT8}": rate[fastest] / rate[ONNX_INT8],
        f"throughput, {fastest} / {OPENVINO_INT8}": rate[fastest] / rate[OPENVINO_INT8],
        **{
            f"response time of a batch of {largest}, {SWAPPING} / {name}": at_largest[SWAPPING]
            / at_largest[name]
            for name in dict.fromkeys([ours["float32"], fastest])
        },
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
