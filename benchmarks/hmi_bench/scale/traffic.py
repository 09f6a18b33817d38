"""Traffic with a Zipf law of popularity, and an artifact store that records where adapters came from.

Requests for the adapter of rank r are proportional to 1 / r^s.
"""

import itertools
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hmi_api.artifacts import ArtifactRef
from hmi_api.internal.inference import InferRow
from hmi_api.internal.runtimes import AdapterServing
from hmi_bench.timing import percentile
from hmi_runtime.artifacts.store import ArtifactStore
from hmi_runtime.serving.pipeline import Pipeline


class Source(StrEnum):
    """Where an adapter was when a request for it arrived."""

    MEMORY = "memory"
    DISK = "disk"
    STORE = "store"


@dataclass(frozen=True)
class _Read:
    moment: float
    source: Source


class WatchedStore(ArtifactStore):
    """An artifact store that records every fetch: one for each adapter not in memory. Thread-safe."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._copies: dict[str, Path] = {}
        self._reads: dict[str, _Read] = {}
        self._watch = threading.Lock()

    def fetch(self, ref: ArtifactRef, cache_dir: Path) -> Path:
        """Fetch as the store does; record when, and whether there was a local copy."""
        with self._watch:
            copy = self._copies.get(ref.digest)
        source = Source.DISK if copy is not None and copy.is_dir() else Source.STORE
        path = super().fetch(ref, cache_dir)
        with self._watch:
            self._copies[ref.digest] = path
            self._reads[ref.digest] = _Read(time.monotonic(), source)
        return path

    def source_since(self, digest: str, moment: float) -> Source:
        """Return where an artifact was read from since ``moment`` (monotonic); memory if it was not read."""
        with self._watch:
            read = self._reads.get(digest)
        return Source.MEMORY if read is None or read.moment < moment else read.source


_TIMEOUT = 120.0


@dataclass(frozen=True)
class TrafficRequest:
    """One request: a text for an adapter."""

    adapter: AdapterServing
    text: str


@dataclass(frozen=True)
class Answered:
    """How long one request took, and where its adapter was when it arrived."""

    seconds: float
    source: Source


@dataclass(frozen=True)
class Latency:
    """Percentiles of requests, in seconds; None without requests."""

    requests: int
    p50: float | None
    p99: float | None

    @classmethod
    def of(cls, answers: Sequence[Answered]) -> "Latency":
        """Return the percentiles of ``answers``."""
        seconds = [answer.seconds for answer in answers]
        if not seconds:
            return cls(0, None, None)
        return cls(len(seconds), percentile(seconds, 0.5), percentile(seconds, 0.99))


def zipf_requests(
    adapters: Sequence[AdapterServing], texts: Sequence[str], requests: int, *, exponent: float, seed: int
) -> list[TrafficRequest]:
    """Draw requests; the first of ``adapters`` is the most popular, texts are equally likely."""
    source = random.Random(seed)  # noqa: S311 - traffic, not secrets
    weights = list(itertools.accumulate(1 / rank**exponent for rank in range(1, len(adapters) + 1)))
    chosen = source.choices(adapters, cum_weights=weights, k=requests)
    return [TrafficRequest(adapter, source.choice(texts)) for adapter in chosen]


def run_traffic(
    pipeline: Pipeline, store: WatchedStore, requests: Sequence[TrafficRequest], *, clients: int
) -> tuple[list[Answered], float]:
    """Send ``requests`` from ``clients`` threads, each of which waits for its answer before the next one.

    Returns the answers and the seconds in all. Raises ``RuntimeError`` if a request fails.
    """

    def client(number: int) -> list[Answered]:
        return [_send(pipeline, store, request) for request in requests[number::clients]]

    started = time.monotonic()
    with ThreadPoolExecutor(clients, thread_name_prefix="client") as threads:
        answers = [answer for part in threads.map(client, range(clients)) for answer in part]
    return answers, time.monotonic() - started


def _send(pipeline: Pipeline, store: WatchedStore, request: TrafficRequest) -> Answered:
    started = time.monotonic()
    (result,) = pipeline.submit([InferRow(adapter=request.adapter.key, text=request.text)]).result(_TIMEOUT)
    seconds = time.monotonic() - started
    if result.error is not None:
        raise RuntimeError(f"{request.adapter.key}: {result.error.reason}: {result.error.message}")
    return Answered(seconds, store.source_since(request.adapter.artifact.digest, started))
