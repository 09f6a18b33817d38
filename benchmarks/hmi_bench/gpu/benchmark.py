"""GPU benchmark: agreement with the reference, peers, ten thousand adapters, copies hidden behind compute.

Random weights of BERT-base's shape. Every part also runs on a CPU, where it shows nothing about a GPU.
"""

import importlib.util
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig

from hmi_bench import results
from hmi_bench.base_models import SHAPES, open_base
from hmi_bench.gpu.overlap import read_overlap
from hmi_bench.runtime_setup import publish_domain, runtime_settings, serving
from hmi_bench.scale.population import Population
from hmi_bench.scale.traffic import WatchedStore, run_traffic, zipf_requests
from hmi_bench.serving.hmi import HierarchicalRuntime, Shared, random_adapter
from hmi_bench.serving.systems import ServingSystem, StoredModels, Swapping, make_batch
from hmi_bench.texts import TextMaker, draw_lengths, text_lengths
from hmi_bench.timing import seconds_of, time_in_turns
from hmi_runtime.adapters.executor import UpperExecutor
from hmi_runtime.adapters.frozen import Precision
from hmi_runtime.adapters.kernels import Kernel, available_kernels, default_kernel
from hmi_runtime.adapters.reference import run_row
from hmi_runtime.adapters.slot_pool import SlotLimits, SlotPool
from hmi_runtime.models.source import BaseModel

log = logging.getLogger(__name__)
_LABELS = 4


@dataclass(frozen=True)
class GpuPlan:
    """Sizes of the benchmark; the defaults take about five minutes on a large GPU."""

    device: str = "cuda"
    shape: str = "bert-base"
    rank: int = 16
    adapters: tuple[int, ...] = (1, 100, 10_000)
    batch_sizes: tuple[int, ...] = (32, 128)
    rounds: int = 5
    traced_adapters: int = 256
    traced_slots: int = 64
    traced_requests: int = 2_000


def run_gpu(out: Path, plan: GpuPlan) -> str:
    """Run all parts, write ``gpu.json`` and ``gpu-trace.json`` under ``out``, and return the tables.

    Raises ``RuntimeError`` when the device is a GPU that is not there.
    """
    device = torch.device(plan.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("PyTorch finds no GPU here: install the cuda extra, or give --device cpu.")
    with TemporaryDirectory(prefix="hmi-gpu-") as name:
        base = open_base(plan.shape, Path(name))
        shared = Shared.make(base.config, device=device)
        figures: dict[str, list[dict[str, Any]]] = {
            "Agreement with the reference": measure_agreement(plan, shared),
            "Peers": measure_peers(plan, shared),
            "Adapters on one device": measure_adapters(plan, shared),
            "Copies behind compute": measure_copies(plan, base, out),
        }
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    results.write_json(out / "gpu.json", device=gpu, **figures)
    parts = [f"### {title}\n\n{results.table(rows)}" for title, rows in figures.items()]
    return "\n\n".join([f"Device: {gpu}, PyTorch {torch.__version__}", *parts])


def measure_agreement(plan: GpuPlan, shared: Shared) -> list[dict[str, Any]]:
    """Compare every kernel of the device with the reference, which computes in float32 on the CPU."""
    rows = 8
    config = shared.upper.config
    on_host = Shared.make(config)
    adapters = [random_adapter(on_host.upper, plan.rank, _LABELS, seed=row) for row in range(rows)]
    lengths = [5 + 4 * row for row in range(rows)]
    batch = make_batch(lengths, config.vocab_size, seed=0)
    hidden = torch.randn(*batch.ids.shape, config.width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = [
            run_row(on_host.upper, adapter, hidden[row], batch.mask[row])[: lengths[row]]
            for row, adapter in enumerate(adapters)
        ]
    table = []
    for kernel in available_kernels(torch.device(plan.device), shared.upper):
        executor = _executor(shared, kernel, rows, plan.rank)
        for slot, adapter in enumerate(adapters):
            executor.pool.write(slot, adapter)
        found = executor.run(hidden.to(plan.device), batch.mask.to(plan.device), list(range(rows)))
        pairs = [(found[row, : lengths[row]].float().cpu(), expected[row]) for row in range(rows)]
        cosines = [functional.cosine_similarity(ours, theirs, dim=1).min() for ours, theirs in pairs]
        table.append(
            {
                "kernel": kernel.name,
                "least cosine of a token": float(min(cosines)),
                "largest difference": max(float((ours - theirs).abs().max()) for ours, theirs in pairs),
            }
        )
    return table


def measure_peers(plan: GpuPlan, shared: Shared) -> list[dict[str, Any]]:
    """Time this runtime, PEFT where it is installed, and model swapping, each at several batch sizes."""
    device, rows = torch.device(plan.device), max(plan.batch_sizes)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    precision: Precision = "bfloat16" if device.type == "cuda" else "float32"
    config = BertConfig(**SHAPES[plan.shape])
    systems: list[ServingSystem] = [
        HierarchicalRuntime(shared, rank=rank, rows=rows, precision=precision) for rank in (None, plan.rank)
    ]
    if importlib.util.find_spec("peft") is not None:
        from hmi_bench.serving.peft import PeftMixed  # noqa: PLC0415 - may not be installed beside a GPU

        systems.append(PeftMixed(config, plan.rank, rows, device=device, dtype=dtype))
    stored = StoredModels(config, 8, device=device, dtype=dtype)
    systems.append(Swapping(stored, resident=False))
    table = []
    for size in plan.batch_sizes:
        batch = make_batch(text_lengths(size), config.vocab_size, seed=size)
        for system in systems:
            system.prepare(batch)
        ways = {system.name: partial(system.serve, batch) for system in systems}
        table += [
            {
                "system": timing.name,
                "batch": size,
                "ms": 1000 * timing.median,
                "rows a second": size / timing.median,
            }
            for timing in time_in_turns(ways, size, rounds=plan.rounds)
        ]
        log.info("batch %d measured", size)
    return table


def measure_adapters(plan: GpuPlan, shared: Shared) -> list[dict[str, Any]]:
    """Time batches over more and more adapters, all of them in slots of one device, few of them popular."""
    device, size = torch.device(plan.device), max(plan.batch_sizes)
    precision: Precision = "bfloat16" if device.type == "cuda" else "float32"
    kernel = default_kernel(precision, device, shared.upper)
    most = max(plan.adapters)
    config = shared.upper.config
    executor = _executor(shared, kernel, most, plan.rank)
    template = random_adapter(shared.upper, plan.rank, _LABELS, seed=0)
    started = time.perf_counter()
    for slot in range(most):
        executor.pool.write(slot, template)
    _wait_for(device)
    seconds_a_write = (time.perf_counter() - started) / most
    batch = make_batch(text_lengths(size), config.vocab_size, seed=0).to(device)
    hidden = torch.randn(*batch.ids.shape, config.width, device=device)
    table = []
    for count in plan.adapters:
        slots = _popular_slots(count, size)

        def run(slots: Sequence[int] = slots) -> None:
            executor.run(hidden, batch.mask, slots)
            _wait_for(device)

        run()
        seconds = sorted(seconds_of(run) for _ in range(4 * plan.rounds))
        table.append(
            {
                "adapters": count,
                "different ones in a batch": len(set(slots)),
                "rows a second": size / seconds[len(seconds) // 2],
                "GB of slots": most
                * SlotPool.slot_bytes(config, shared.upper.split, executor.pool.limits)
                / 1e9,
                "ms to write a slot": 1000 * seconds_a_write,
            }
        )
    return table


def _popular_slots(count: int, size: int) -> list[int]:
    """Return one slot for each row, by a Zipf law of exponent 1."""
    source = random.Random(count)  # noqa: S311 - traffic, not secrets
    return source.choices(range(count), weights=[1 / rank for rank in range(1, count + 1)], k=size)


def measure_copies(plan: GpuPlan, base: BaseModel, out: Path) -> list[dict[str, Any]]:
    """Send traffic for more adapters than slots through the pipeline; return how far copies are hidden."""
    with TemporaryDirectory(prefix="hmi-gpu-") as name:
        folder = Path(name)
        texts = TextMaker(base).texts(draw_lengths(256))
        store = WatchedStore(str(folder / "store"))
        population = Population(publish_domain(base, store, texts), plan.rank)
        settings = runtime_settings(
            folder,
            device=plan.device,
            device_slots=plan.traced_slots,
            device_budget=1 << 34,
            host_budget=2 * plan.traced_adapters * population.nbytes,
            max_rank=plan.rank,
            max_bottleneck=0,
            dense_heads=False,
        )
        with serving(settings, store) as loader:
            population.grow(loader, plan.traced_adapters)
            requests = zipf_requests(population.adapters, texts, plan.traced_requests, exponent=0.5, seed=0)
            run_traffic(loader.pipeline, store, requests[: plan.traced_requests // 4], clients=64)
            activities = [ProfilerActivity.CPU]
            if plan.device.startswith("cuda"):
                activities.append(ProfilerActivity.CUDA)
            with profile(activities=activities) as profiler:
                answers, seconds = run_traffic(loader.pipeline, store, requests, clients=64)
    out.mkdir(parents=True, exist_ok=True)
    trace = out / "gpu-trace.json"
    profiler.export_chrome_trace(str(trace))
    found = read_overlap(trace)
    return [
        {
            "requests a second": len(answers) / seconds,
            "copies to the device": found.copies,
            "ms of copies": found.copy_microseconds / 1000,
            "hidden behind kernels": f"{found.hidden_share:.0%}" if found.copies else "no copies",
        }
    ]


def _executor(shared: Shared, kernel: Kernel, slots: int, rank: int) -> UpperExecutor:
    limits = SlotLimits(max_rank=rank, max_labels=_LABELS, dense_heads=False)
    device = shared.encoder.word.weight.device
    pool = SlotPool(shared.upper, slots, replace(limits, dtype=kernel.slot_dtype), device)
    return UpperExecutor(shared.upper, pool, kernel)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
