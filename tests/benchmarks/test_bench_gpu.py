"""The GPU benchmark's arithmetic, and its parts on a CPU."""

import itertools
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hmi_bench.gpu.benchmark import GpuPlan, run_gpu
from hmi_bench.gpu.overlap import merge, overlap, read_overlap

SPANS = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)).map(lambda s: (s[0], s[0] + s[1])))


@given(SPANS, SPANS)
def test_overlap_counts_each_microsecond_once(
    copies: list[tuple[int, int]], kernels: list[tuple[int, int]]
) -> None:
    copying = {moment for start, end in copies for moment in range(start, end)}
    computing = {moment for start, end in kernels for moment in range(start, end)}
    found = overlap(copies, kernels)
    assert found.copy_microseconds == len(copying)
    assert found.hidden_microseconds == len(copying & computing)
    assert 0 <= found.hidden_share <= 1


@given(SPANS)
def test_merged_spans_are_apart(spans: list[tuple[int, int]]) -> None:
    merged = merge(spans)
    assert all(left[1] < right[0] for left, right in itertools.pairwise(merged))


def test_a_trace_counts_copies_to_the_device_only(tmp_path: Path) -> None:
    events = [
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD (Pinned -> Device)", "ts": 0, "dur": 10},
        {"cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pinned)", "ts": 100, "dur": 10},
        {"cat": "kernel", "name": "gemm", "ts": 4, "dur": 100},
        {"cat": "cpu_op", "name": "aten::copy_", "ts": 0, "dur": 10},
        {"name": "process_name", "ph": "M"},
    ]
    trace = tmp_path / "trace.json"
    trace.write_text(json.dumps({"traceEvents": events}))
    found = read_overlap(trace)
    assert (found.copies, found.copy_microseconds, found.hidden_microseconds) == (1, 10, 6)


def test_all_parts_run_on_a_cpu(tmp_path: Path) -> None:
    plan = GpuPlan(
        device="cpu",
        shape="tiny",
        rank=4,
        adapters=(1, 20),
        batch_sizes=(4,),
        rounds=1,
        traced_adapters=12,
        traced_slots=8,
        traced_requests=32,
    )
    tables = run_gpu(tmp_path, plan)
    assert "PEFT mixed batch" in tables
    figures = json.loads((tmp_path / "gpu.json").read_text())
    for kernel in figures["Agreement with the reference"]:
        assert kernel["least cosine of a token"] > 0.99
    assert [row["adapters"] for row in figures["Adapters on one device"]] == [1, 20]
    assert figures["Copies behind compute"][0]["hidden behind kernels"] == "no copies"
