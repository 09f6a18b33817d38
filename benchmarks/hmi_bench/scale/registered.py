"""Very many registered adapters on one runtime: what registering one costs in time and memory.

A runtime knows an adapter from its desired state (``AdapterStates``), its cache and its pipeline, all of them
in memory. The adapters here differ in key and digest and share one artifact's content, which is not read:
what loading one costs does not depend on their number, and ``Registering`` has it.
"""

import hashlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hmi_api.internal.inference import InferRow
from hmi_api.internal.runtimes import AdapterServing, DesiredState
from hmi_bench.runtime_setup import serving
from hmi_bench.scale.memory import process_memory
from hmi_bench.scale.population import Population
from hmi_bench.timing import seconds_of
from hmi_runtime.cache.adapter_cache import AdapterId
from hmi_runtime.server.adapter_states import AdapterStates
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.server.settings import RuntimeSettings

_TIMED_REQUESTS = 51
_TIMEOUT = 60.0


@dataclass(frozen=True)
class Registered:
    """Cost of ``adapters`` registered adapters; bytes and seconds of registration are of one of them."""

    adapters: int
    seconds_each: float
    bytes_each: float
    answer_of_one: float
    """Median seconds of a request to an adapter in a slot, when it is the only one."""
    answer_of_many: float
    """The same among all of them."""


def measure_registered(
    settings: RuntimeSettings, population: Population, texts: Sequence[str], adapters: int
) -> Registered:
    """Register ``adapters`` adapters on a new runtime, and time requests to one of them before and after."""
    template = population.adapters[0]
    with serving(settings, population.domain.store) as loader:
        loaded = loader.load(template, population.domain.serving)
        loader.activate(loaded)
        answer_of_one = _median_answer(loader, template.key, texts)
        states = AdapterStates()
        before, started = process_memory(), time.perf_counter()
        # As the control plane would send them; parsing JSON is not included.
        others = [_variant(template, number) for number in range(adapters - 1)]
        states.apply(
            DesiredState(revision=1, full=True, domains=[population.domain.serving], adapters=others)
        )
        for other in others:
            one = replace(loaded, id=AdapterId.of(other), artifact=other.artifact)
            loader.activate(one)
            states.record_loaded(one)
        states.acknowledge(states.next_report())
        seconds, growth = time.perf_counter() - started, process_memory() - before
        answer_of_many = _median_answer(loader, template.key, texts)
    return Registered(adapters, seconds / len(others), growth / len(others), answer_of_one, answer_of_many)


def _variant(template: AdapterServing, number: int) -> AdapterServing:
    """Return the entry of another tenant's adapter."""
    key = f"registered-{number:06d}/task"
    digest = "sha256:" + hashlib.sha256(key.encode()).hexdigest()
    artifact = template.artifact.model_copy(update={"digest": digest, "uri": f"adapter/{digest}"})
    return template.model_copy(update={"key": key, "artifact": artifact, "labels": list(template.labels)})


def _median_answer(loader: AdapterLoader, key: str, texts: Sequence[str]) -> float:
    def ask(text: str) -> None:
        (result,) = loader.pipeline.submit([InferRow(adapter=key, text=text)]).result(_TIMEOUT)
        if result.error is not None:
            raise RuntimeError(f"{key}: {result.error.reason}: {result.error.message}")

    text = texts[0]
    ask(text)
    return statistics.median(seconds_of(lambda: ask(text)) for _ in range(_TIMED_REQUESTS))
