"""What requests notice of refreshes: throughput and latency beside a process that refreshes a table."""

import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from hmi_bench import results
from hmi_bench.base_models import open_base
from hmi_bench.fanout import ask, make_tasks
from hmi_bench.refresh import refresh_again_and_again
from hmi_bench.runtime_setup import publish_domain, runtime_settings, serving
from hmi_bench.texts import TextMaker, draw_lengths
from hmi_bench.timing import percentile
from hmi_runtime.artifacts.store import ArtifactStore
from hmi_runtime.server.loader import AdapterLoader

_RANK = 16


@dataclass(frozen=True)
class LoadPlan:
    """Parameters: clients that each wait for their answer, seconds of a round, and rounds of each kind."""

    base: str = "minilm"
    windows: int = 10_000
    clients: int = 8
    texts: int = 64
    seconds: float = 4.0
    rounds: int = 5


@dataclass(frozen=True)
class Served:
    """Requests answered in a second, and the 99th percentile of their seconds; a request has six rows."""

    requests_a_second: float
    p99: float


@dataclass(frozen=True)
class Load:
    """Medians of all rounds without and beside refreshes, and the medians of the rounds' ratios."""

    alone: Served
    beside: Served
    throughput_ratio: float
    p99_ratio: float


def run_load(out: Path, plan: LoadPlan) -> str:
    """Measure ``plan``, write ``refresh-load.json`` under ``out``, and return the report."""
    with TemporaryDirectory(prefix="hmi-refresh-load-") as name:
        load = measure_load(Path(name), plan)
    results.write_json(out / "refresh-load.json", plan=asdict(plan), load=asdict(load))
    return _report(load)


def measure_load(folder: Path, plan: LoadPlan) -> Load:
    """Serve without and beside refreshes, in turns; ``folder`` is empty and takes the artifacts."""
    (folder / "base").mkdir()
    base = open_base(plan.base, folder / "base")
    maker = TextMaker(base)
    texts = maker.texts(draw_lengths(plan.texts))
    store = ArtifactStore(str(folder / "store"))
    domain = publish_domain(base, store, texts)
    adapters = make_tasks(base, domain.split, domain.layers_digest, _RANK)
    rounds: list[tuple[Served, Served]] = []
    with (
        serving(runtime_settings(folder), store) as loader,
        _refreshes(folder, plan) as process,
    ):
        for key, weights in adapters.items():
            loader.activate(loader.load(domain.publish(key, weights), domain.serving))
        _serve(loader, list(adapters), texts, plan)  # not counted
        for _ in range(plan.rounds):
            alone = _serve(loader, list(adapters), texts, plan)
            os.kill(process, signal.SIGCONT)
            beside = _serve(loader, list(adapters), texts, plan)
            os.kill(process, signal.SIGSTOP)
            rounds.append((alone, beside))
    return Load(
        _median([alone for alone, _ in rounds]),
        _median([beside for _, beside in rounds]),
        statistics.median(beside.requests_a_second / alone.requests_a_second for alone, beside in rounds),
        statistics.median(beside.p99 / alone.p99 for alone, beside in rounds),
    )


@contextmanager
def _refreshes(folder: Path, plan: LoadPlan) -> Iterator[int]:
    """Run refreshes back to back in a process, stopped at first; yield its id."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(
        target=refresh_again_and_again,
        args=(folder / "refreshes", plan.base, plan.windows, torch.get_num_threads(), ready),
        daemon=True,
    )
    process.start()
    try:
        while not ready.wait(1.0):
            if process.exitcode is not None or process.pid is None:
                raise RuntimeError(f"the process that refreshes ended with {process.exitcode}")
        os.kill(process.pid or 0, signal.SIGSTOP)
        yield process.pid or 0
    finally:
        process.kill()
        process.join()


def _serve(loader: AdapterLoader, keys: list[str], texts: list[str], plan: LoadPlan) -> Served:
    """Let every client ask for a round's time."""
    started = time.perf_counter()

    def client(number: int) -> list[float]:
        seconds = []
        place = number
        while (asked := time.perf_counter()) < started + plan.seconds:
            ask(loader, keys, texts[place % len(texts)])
            seconds.append(time.perf_counter() - asked)
            place += plan.clients
        return seconds

    with ThreadPoolExecutor(plan.clients) as threads:
        took = [one for found in threads.map(client, range(plan.clients)) for one in found]
    return Served(len(took) / (time.perf_counter() - started), percentile(took, 0.99))


def _median(rounds: list[Served]) -> Served:
    return Served(
        statistics.median(one.requests_a_second for one in rounds),
        statistics.median(one.p99 for one in rounds),
    )


def _report(load: Load) -> str:
    return "\n".join(
        [
            "| | requests a second | p99, ms |",
            "|---|---|---|",
            f"| alone | {load.alone.requests_a_second:.1f} | {1000 * load.alone.p99:.0f} |",
            f"| beside refreshes | {load.beside.requests_a_second:.1f} | {1000 * load.beside.p99:.0f} |",
            f"| ratio | {load.throughput_ratio:.2f} | {load.p99_ratio:.2f} |",
        ]
    )
