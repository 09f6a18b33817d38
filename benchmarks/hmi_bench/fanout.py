"""Fan-out benchmark: six tasks over one text, four ways, at several text lengths."""

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor

from hmi_api.internal.inference import InferRow, RowResult
from hmi_api.resources.task_adapter import TaskType
from hmi_bench import results
from hmi_bench.base_models import open_base
from hmi_bench.runtime_setup import PublishedDomain, publish_domain, runtime_settings, serving
from hmi_bench.serving.hmi import random_adapter
from hmi_bench.texts import TextMaker
from hmi_bench.timing import percentile, seconds_in_turns
from hmi_runtime.adapters.heads import run_head
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.artifacts.store import ArtifactStore
from hmi_runtime.models.encoder import Encoder, UpperLayers
from hmi_runtime.models.source import BaseModel
from hmi_runtime.server.loader import AdapterLoader


class MergedModel:
    """A whole encoder with one adapter merged in, and the adapter's head: plain torch, no table."""

    def __init__(self, base: BaseModel, adapter: AdapterWeights, device: torch.device) -> None:
        self._base = base
        self.encoder = merge(base.encoder(), adapter).to(device)
        head = adapter.head
        self._head = replace(head, weight=head.weight.to(device), bias=head.bias.to(device))
        self._device = device

    def answer(self, text: str) -> Tensor:
        """Tokenise, run the whole model, and return probabilities: (labels,), or (T, labels) by token."""
        (encoding,) = self._base.tokenizer.encode([text], self._base.config.positions)
        ids = torch.tensor([encoding.ids], device=self._device)  # (1, T)
        mask = torch.ones_like(ids, dtype=torch.bool)
        hidden = self.encoder(ids, mask)[0]  # (T, D)
        return run_head(self._head, hidden, mask[0]).softmax(-1).cpu()


def merge(encoder: Encoder, adapter: AdapterWeights) -> Encoder:
    """Change ``encoder`` in place into what it is with ``adapter``, and return it.

    Raises ``ValueError`` for bottlenecks, which are layers of their own and cannot be merged.
    """
    with torch.no_grad():
        for index, changes in adapter.layers.items():
            if changes.bottlenecks:
                raise ValueError("a bottleneck cannot be merged into a matrix")
            layer = encoder.layers[index]
            for name, lora in changes.lora.items():
                layer.get_parameter(f"{name}.weight").add_(lora.b @ lora.a)
            for name, bias in changes.bias.items():
                layer.get_parameter(f"{name}.bias").copy_(bias)
            for name, (weight, bias) in changes.norms.items():
                layer.get_parameter(f"{name}.weight").copy_(weight)
                layer.get_parameter(f"{name}.bias").copy_(bias)
    return encoder


log = logging.getLogger(__name__)
ONE_REQUEST = "HMI, one request for all tasks"
SIX_REQUESTS = "HMI, a request for each task"
NEW_TEXT = "HMI, one request, text not in the table"
MERGED = "merged whole models, one after another"
SEQUENCE_LABELS = (2, 3, 5, 8, 14)
TOKEN_LABELS = 9
_TENANT = "bench"
_TIMEOUT = 120.0


@dataclass(frozen=True)
class FanoutPlan:
    """What is measured; lengths are tokens."""

    base: str = "minilm"
    lengths: tuple[int, ...] = (16, 32, 64, 128)
    rounds: int = 21
    rank: int = 16
    device: str = "cpu"
    precision: Literal["float32", "int8"] = "float32"
    other_entries: int = 50_000


@dataclass(frozen=True)
class FanoutTiming:
    """Seconds for the answers of all tasks about one text, one way."""

    way: str
    length: int
    median: float
    p90: float


def run_fanout(out: Path, plan: FanoutPlan) -> str:
    """Measure ``plan``, write ``fanout.json`` and ``fanout.png`` under ``out``, and return the table."""
    with TemporaryDirectory(prefix="hmi-fanout-") as name:
        timings, first = _measure(plan, Path(name))
    results.write_json(
        out / "fanout.json",
        plan=asdict(plan),
        tasks=len(SEQUENCE_LABELS) + 1,
        timings=[asdict(timing) for timing in timings],
        first_request_seconds=first,
    )
    series = {way: [1000 * t.median for t in timings if t.way == way] for way in _ways(timings)}
    results.grouped_bars(
        out / "fanout.png",
        f"Six tasks over one text, {plan.base}",
        "milliseconds, median",
        [f"{length} tokens" for length in plan.lengths],
        series,
    )
    return _table(timings) + f"\n\nFirst request of all, adapters still on disk: {1000 * first:.0f} ms."


def make_tasks(base: BaseModel, split: int, layers_digest: str, rank: int) -> dict[str, AdapterWeights]:
    """Return six random adapters by name: five with different numbers of labels, one for tokens."""
    upper = UpperLayers(base.encoder(), split)
    made = [random_adapter(upper, rank, n, seed=n) for n in (*SEQUENCE_LABELS, TOKEN_LABELS)]
    made[-1] = _for_tokens(made[-1])
    return {
        f"{_TENANT}/task-{number}": replace(adapter, base_digest=base.digest, layers_digest=layers_digest)
        for number, adapter in enumerate(made)
    }


def _for_tokens(adapter: AdapterWeights) -> AdapterWeights:
    width = adapter.head.weight.shape[1] // 2  # the token head reads one state, not first and mean
    head = replace(adapter.head, pooling="token", weight=adapter.head.weight[:, :width])
    return replace(adapter, task=TaskType.TOKEN_CLASSIFICATION, head=head)


def ask(loader: AdapterLoader, keys: Sequence[str], text: str) -> list[RowResult]:
    """Send one request with a row for each of ``keys`` and return the answers.

    Raises ``RuntimeError`` when a row has none: a time of failures would mean nothing.
    """
    answers = loader.pipeline.submit([InferRow(adapter=key, text=text) for key in keys]).result(_TIMEOUT)
    for answer in answers:
        if answer.error is not None:
            raise RuntimeError(f"{answer.error.reason}: {answer.error.message}")
    return answers


def _measure(plan: FanoutPlan, folder: Path) -> tuple[list[FanoutTiming], float]:
    """Return all timings, and the seconds of the very first request."""
    (folder / "base").mkdir()
    base = open_base(plan.base, folder / "base")
    maker = TextMaker(base)
    known = {length: maker.text(length) for length in plan.lengths}
    domain = publish_domain(
        base,
        ArtifactStore(str(folder / "store")),
        list(known.values()),
        other_entries=plan.other_entries,
    )
    adapters = make_tasks(base, domain.split, domain.layers_digest, plan.rank)
    device = torch.device(plan.device)
    merged = [MergedModel(base, adapter, device) for adapter in adapters.values()]
    settings = runtime_settings(folder, device=plan.device, precision=plan.precision)
    timings = []
    with serving(settings, domain.store) as loader:
        _serve(loader, domain, adapters)
        first = _seconds(lambda: ask(loader, list(adapters), known[plan.lengths[0]]))
        for length, text in known.items():
            new_texts = iter(maker.texts([length] * (plan.rounds + 1)))  # one more for the warm-up
            ways = _make_ways(loader, list(adapters), merged, text, new_texts)
            seconds = seconds_in_turns(ways, rounds=plan.rounds)
            timings += [
                FanoutTiming(way, length, statistics.median(found), percentile(found, 0.9))
                for way, found in seconds.items()
            ]
            log.info("%d tokens: %s", length, _milliseconds(seconds))
    return timings, first


def _make_ways(
    loader: AdapterLoader,
    keys: Sequence[str],
    merged: Sequence[MergedModel],
    text: str,
    new_texts: Iterator[str],
) -> dict[str, Callable[[], object]]:
    return {
        ONE_REQUEST: lambda: ask(loader, keys, text),
        SIX_REQUESTS: lambda: [ask(loader, [key], text) for key in keys],
        NEW_TEXT: lambda: ask(loader, keys, next(new_texts)),
        MERGED: lambda: [model.answer(text) for model in merged],
    }


def _serve(loader: AdapterLoader, domain: PublishedDomain, adapters: Mapping[str, AdapterWeights]) -> None:
    for key, weights in adapters.items():
        loader.activate(loader.load(domain.publish(key, weights), domain.serving))


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _milliseconds(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {way: round(1000 * statistics.median(found), 1) for way, found in seconds.items()}


def _ways(timings: Sequence[FanoutTiming]) -> list[str]:
    return list(dict.fromkeys(timing.way for timing in timings))


def _table(timings: Sequence[FanoutTiming]) -> str:
    lengths = list(dict.fromkeys(timing.length for timing in timings))
    median = {(t.way, t.length): t.median for t in timings}
    header = ["way", *(f"ms, {length} tokens" for length in lengths), "times one request here"]
    rows: list[list[object]] = [
        [
            way,
            *(1000 * median[way, length] for length in lengths),
            statistics.geometric_mean(median[way, n] / median[ONE_REQUEST, n] for n in lengths),
        ]
        for way in _ways(timings)
    ]
    return results.table(header, rows)
