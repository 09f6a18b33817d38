"""Fan-out benchmark: six tasks over one text, four ways, at several text lengths."""

import logging
import statistics
from collections.abc import Callable, Iterator, Sequence
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
from hmi_bench.runtime_setup import publish_domain, runtime_settings, serving
from hmi_bench.serving.hmi import random_adapter
from hmi_bench.texts import TextMaker
from hmi_bench.timing import Timing, seconds_of, time_in_turns
from hmi_runtime.adapters.heads import run_head
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.artifacts.store import ArtifactStore
from hmi_runtime.models.encoder import Encoder, UpperLayers
from hmi_runtime.models.source import BaseModel
from hmi_runtime.server.loader import AdapterLoader


class MergedModel:
    """A whole encoder with one adapter merged in, and the adapter's head: plain PyTorch, without a table."""

    def __init__(self, base: BaseModel, adapter: AdapterWeights, device: torch.device) -> None:
        self._base = base
        self.encoder = merge(base.encoder(), adapter).to(device)
        head = adapter.as_float32().head
        self._head = replace(head, weight=head.weight.to(device), bias=head.bias.to(device))
        self._device = device

    def answer(self, text: str) -> Tensor:
        """Tokenise and run the whole model; return probabilities (labels,), or (T, labels) for tokens."""
        (encoding,) = self._base.tokenizer.encode([text], self._base.config.positions)
        ids = torch.tensor([encoding.ids], device=self._device)  # (1, T)
        mask = torch.ones_like(ids, dtype=torch.bool)
        hidden = self.encoder(ids, mask)[0]  # (T, D)
        return run_head(self._head, hidden, mask[0]).softmax(-1).cpu()


def merge(encoder: Encoder, adapter: AdapterWeights) -> Encoder:
    """Merge ``adapter`` into ``encoder`` in place, and return it.

    Raises ``ValueError`` for bottlenecks, which are layers of their own and cannot be merged.
    """
    with torch.no_grad():
        for index, changes in adapter.as_float32().layers.items():
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
    """Parameters of the benchmark; lengths are in tokens."""

    base: str = "minilm"
    lengths: tuple[int, ...] = (16, 32, 64, 128)
    rounds: int = 21
    rank: int = 16
    device: str = "cpu"
    precision: Literal["float32", "int8"] = "float32"
    other_entries: int = 50_000


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
    series = {way: [1000 * t.median for t in timings if t.name == way] for way in _ways(timings)}
    results.grouped_bars(
        out / "fanout.png",
        f"Six tasks over one text, {plan.base}",
        "milliseconds, median",
        [f"{length} tokens" for length in plan.lengths],
        series,
    )
    return _table(timings) + f"\n\nFirst request, adapters still on disk: {1000 * first:.0f} ms."


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

    Raises ``RuntimeError`` if a row fails.
    """
    answers = loader.pipeline.submit([InferRow(adapter=key, text=text) for key in keys]).result(_TIMEOUT)
    for answer in answers:
        if answer.error is not None:
            raise RuntimeError(f"{answer.error.reason}: {answer.error.message}")
    return answers


def _measure(plan: FanoutPlan, folder: Path) -> tuple[list[Timing], float]:
    """Return all timings, and the seconds of the first request."""
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
    timings: list[Timing] = []
    with serving(settings, domain.store) as loader:
        for key, weights in adapters.items():
            loader.activate(loader.load(domain.publish(key, weights), domain.serving))
        first = seconds_of(lambda: ask(loader, list(adapters), known[plan.lengths[0]]))
        for length, text in known.items():
            new_texts = iter(maker.texts([length] * (plan.rounds + 1)))  # one more for the warm-up
            ways = _make_ways(loader, list(adapters), merged, text, new_texts)
            timings += time_in_turns(ways, length, rounds=plan.rounds)
            log.info("%d tokens measured", length)
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


def _ways(timings: Sequence[Timing]) -> list[str]:
    return list(dict.fromkeys(timing.name for timing in timings))


def _table(timings: Sequence[Timing]) -> str:
    lengths = list(dict.fromkeys(timing.size for timing in timings))
    median = {(t.name, t.size): t.median for t in timings}
    return results.table(
        {
            "way": way,
            **{f"ms, {length} tokens": 1000 * median[way, length] for length in lengths},
            "times one request here": statistics.geometric_mean(
                median[way, n] / median[ONE_REQUEST, n] for n in lengths
            ),
        }
        for way in _ways(timings)
    )
