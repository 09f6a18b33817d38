"""Churn benchmark: no row gets the answer of another adapter, version or Domain, however much changes."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor

from hmi_bench import results
from hmi_bench.base_models import open_base
from hmi_bench.churn.changes import Changer
from hmi_bench.churn.clients import TOLERANCE, Checker, Client, Progress
from hmi_bench.churn.history import Generation, History
from hmi_bench.churn.models import LABELS, RANK, AdapterMaker, make_domain
from hmi_bench.runtime_setup import runtime_settings, serving
from hmi_bench.texts import TextMaker
from hmi_runtime.artifacts.store import ArtifactStore
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.server.metrics import RuntimeMetrics

log = logging.getLogger(__name__)
_LONGEST = 20  # tokens of a text
_FAN_OUT_CLIENTS = 2
_COMPARED_AT_ONCE = 512
_RETRY_AFTER = 0.1  # seconds
_TIMEOUT = 300.0
"""Seconds; a busy machine must not be mistaken for a row without an answer."""


@dataclass(frozen=True)
class ChurnPlan:
    """Parameters. ``cached`` and ``slots`` are the adapters that host memory and device slots hold."""

    adapters: int = 500
    cached: int = 20
    slots: int = 40
    domains: int = 4
    clients: int = 32
    rows: int = 1_000_000
    rows_a_request: int = 8
    rows_a_change: int = 200
    changes_a_refresh: int = 50
    texts: int = 16
    grace: float = 2.0
    precision: Literal["float32", "int8"] = "float32"


@dataclass(frozen=True)
class ChurnFigures:
    """What a run counted. Differences are of logarithms of probabilities, the largest of a row's labels."""

    answered: int
    wrong: int
    refused: dict[str, int]
    changes: dict[str, int]
    generations: int
    largest_difference: float
    """Of an answer from the reference."""
    least_between_generations: float
    """Of the references of two generations for one text."""
    least_between_texts: float
    """Of the references of one generation for two texts."""
    loads: int
    slots_written: int
    evicted_from_host: int
    evicted_from_slots: int
    bytes_left: int
    seconds: float


class WrongAnswers(RuntimeError):
    """Rows got answers that they must not get; the message names some."""


def run_churn(out: Path, plan: ChurnPlan) -> str:
    """Run ``plan``, write ``churn.json`` under ``out``, and return the table.

    Raises ``WrongAnswers`` if one row has a wrong answer, or if bytes stay in memory at the end.
    """
    with TemporaryDirectory(prefix="hmi-churn-") as name:
        figures, wrong = measure_churn(plan, Path(name))
    results.write_json(out / "churn.json", plan=asdict(plan), figures=asdict(figures), wrong=wrong)
    if figures.wrong or figures.bytes_left:
        raise WrongAnswers(
            f"{figures.wrong} of {figures.answered} rows are wrong, {figures.bytes_left} bytes are left: "
            f"{wrong}"
        )
    return _table(figures)


def measure_churn(plan: ChurnPlan, folder: Path) -> tuple[ChurnFigures, list[str]]:
    """Run ``plan`` with its artifacts in ``folder``; return the figures, and what wrong answers were."""
    (folder / "base").mkdir()
    base = open_base("tiny", folder / "base")
    maker = TextMaker(base)
    texts = [maker.text(5 + number % (_LONGEST - 4)) for number in range(plan.texts)]
    store = ArtifactStore(str(folder / "store"))
    domains = [make_domain(number, base, store, texts) for number in range(plan.domains)]
    keys = [f"tenant-{number:03d}/task" for number in range(plan.adapters)]
    history, metrics = History(), RuntimeMetrics()
    checker = Checker(history, plan.grace)
    progress = Progress(plan.rows, plan.rows_a_change)
    settings = runtime_settings(
        folder,
        precision=plan.precision,
        device_slots=plan.slots,
        host_budget=plan.cached * AdapterMaker().weights(0, domains[0]).as_stored().nbytes,
        max_rank=RANK,
        max_labels=LABELS,
        dense_heads=False,
        max_bottleneck=0,
        request_timeout_seconds=_TIMEOUT,
        failed_load_retry_seconds=_RETRY_AFTER,
    )
    with serving(settings, store, metrics) as loader:
        changer = Changer(loader, domains, keys, history, grace=plan.grace, seed=0)
        changer.create_all()
        log.info("%d adapters are loaded", plan.adapters)
        started = time.monotonic()
        _run_clients(plan, loader, changer, checker, progress, texts, keys)
        seconds = time.monotonic() - started
        changer.forget_all()
        left = loader.cache.host_used
    made = changer.maker.made
    figures = ChurnFigures(
        answered=progress.answered,
        wrong=checker.wrong_count,
        refused=dict(checker.refused),
        changes=dict(changer.counts),
        generations=len(made),
        largest_difference=checker.largest_difference,
        least_between_generations=least_between_generations(made),
        least_between_texts=min(_least_distance(generation.answers) for generation in made),
        loads=_count(metrics, "hmi_adapter_loads_total", tier="host", result="loaded"),
        slots_written=_count(metrics, "hmi_adapter_loads_total", tier="device", result="loaded"),
        evicted_from_host=_count(metrics, "hmi_adapter_evictions_total", **{"from": "host", "to": "disk"}),
        evicted_from_slots=_count(metrics, "hmi_adapter_evictions_total", **{"from": "device", "to": "host"}),
        bytes_left=left,
        seconds=seconds,
    )
    return figures, checker.wrong


def _run_clients(
    plan: ChurnPlan,
    loader: AdapterLoader,
    changer: Changer,
    checker: Checker,
    progress: Progress,
    texts: list[str],
    keys: list[str],
) -> None:
    """Let clients ask and the changer change until all rows are answered."""
    clients = [
        Client(n, loader.pipeline, keys, texts, plan.rows_a_request, fan_out=n < _FAN_OUT_CLIENTS)
        for n in range(plan.clients)
    ]

    def change() -> None:
        try:
            while progress.wait_for_next_change():
                if progress.changes % plan.changes_a_refresh == plan.changes_a_refresh - 1:
                    changer.refresh()
                else:
                    changer.change()
                progress.count_change()
        except BaseException:
            progress.fail()
            raise

    with ThreadPoolExecutor(plan.clients + 1, thread_name_prefix="client") as threads:
        running = [threads.submit(change), *(threads.submit(c.run, progress, checker) for c in clients)]
        for one in running:
            one.result()


def least_between_generations(made: list[Generation]) -> float:
    """Return the least difference of two generations' references for the same text."""
    answers = torch.stack([generation.answers for generation in made], dim=1)  # (texts, G, labels)
    return min(_least_distance(of_text) for of_text in answers)


def _least_distance(points: Tensor) -> float:
    """Return the least distance of two of ``points`` (N, labels), the largest difference of a label."""
    least = float("inf")
    for start in range(0, len(points), _COMPARED_AT_ONCE):
        piece = points[start : start + _COMPARED_AT_ONCE]
        distances = torch.cdist(piece, points, p=torch.inf)  # (n, N)
        distances[torch.arange(len(piece)), torch.arange(start, start + len(piece))] = torch.inf
        least = min(least, float(distances.amin()))
    return least


def _count(metrics: RuntimeMetrics, name: str, **labels: str) -> int:
    return int(metrics.registry.get_sample_value(name, labels) or 0)


def _table(figures: ChurnFigures) -> str:
    rows = {
        "rows answered and compared with the reference": f"{figures.answered:,}",
        "of them wrong": f"{figures.wrong:,}",
        **{f"rows refused: {reason}": f"{count:,}" for reason, count in sorted(figures.refused.items())},
        **{name: f"{count:,}" for name, count in figures.changes.items()},
        "versions in all, each with answers of its own": f"{figures.generations:,}",
        "loads to host memory": f"{figures.loads:,}",
        "evictions from host memory": f"{figures.evicted_from_host:,}",
        "writes to slots": f"{figures.slots_written:,}",
        "evictions from slots": f"{figures.evicted_from_slots:,}",
        "largest difference of an answer from its reference": f"{figures.largest_difference:.1e}",
        "accepted difference": f"{TOLERANCE:.1e}",
        "least difference of two versions' references": f"{figures.least_between_generations:.1e}",
        "least difference of two texts' references": f"{figures.least_between_texts:.1e}",
        "rows a second": f"{figures.answered / figures.seconds:,.0f}",
    }
    return results.table({"what": name, "figure": value} for name, value in rows.items())
