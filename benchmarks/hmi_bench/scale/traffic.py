"""Traffic with a Zipf law of popularity, and an artifact store that records where adapters came from.

The adapter of rank r is asked for in proportion to 1 / r^s.
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
    """Where an adapter was when a request for it came."""

    MEMORY = "memory"
    DISK = "disk"
    STORE = "store"


@dataclass(frozen=True)
class _Read:
    moment: float
    source: Source


class WatchedStore(ArtifactStore):
    """The real store, watched: the disk tier asks it for every adapter that is not in memory. Thread-safe."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._copies: dict[str, Path] = {}
        self._reads: dict[str, _Read] = {}
        self._watch = threading.Lock()

    def fetch(self, ref: ArtifactRef, cache_dir: Path) -> Path:
        """Fetch as the store does, and note when, and whether the local copy was there."""
        with self._watch:
            copy = self._copies.get(ref.digest)
        source = Source.DISK if copy is not None and copy.is_dir() else Source.STORE
        path = super().fetch(ref, cache_dir)
        with self._watch:
            self._copies[ref.digest] = path
            self._reads[ref.digest] = _Read(time.monotonic(), source)
        return path

    def source_since(self, digest: str, moment: float) -> Source:
        """Return from where an artifact was read since ``moment`` (monotonic); memory if it was not read."""
        with self._watch:
            read = self._reads.get(digest)
        return Source.MEMORY if read is None or read.moment < moment else read.source


_TIMEOUT = 120.0


@dataclass(frozen=True)
class Asked:
    """One request of the traffic: a text for an adapter."""

    adapter: AdapterServing
    text: str


@dataclass(frozen=True)
class Answered:
    """How long one request took, and where its adapter was when it came."""

    seconds: float
    source: Source


@dataclass(frozen=True)
class Latency:
    """Percentiles of some requests, seconds; None where there were none."""

    requests: int
    p50: float | None
    p99: float | None

    @classmethod
    def of(cls, answers: Sequence[Answered]) -> "Latency":
        """Summarise requests."""
        seconds = [answer.seconds for answer in answers]
        if not seconds:
            return cls(0, None, None)
        return cls(len(seconds), percentile(seconds, 0.5), percentile(seconds, 0.99))


def zipf_requests(
    adapters: Sequence[AdapterServing], texts: Sequence[str], requests: int, *, exponent: float, seed: int
) -> list[Asked]:
    """Draw requests; the first of ``adapters`` is the most popular, texts are equally likely."""
    source = random.Random(seed)  # noqa: S311 - traffic, not secrets
    weights = list(itertools.accumulate(1 / rank**exponent for rank in range(1, len(adapters) + 1)))
    chosen = source.choices(adapters, cum_weights=weights, k=requests)
    return [Asked(adapter, source.choice(texts)) for adapter in chosen]


def run_traffic(
    pipeline: Pipeline, store: WatchedStore, requests: Sequence[Asked], *, clients: int
) -> tuple[list[Answered], float]:
    """Let ``clients`` send ``requests``, each its next one when it has its answer.

    Returns the answers and the seconds that all took. Raises ``RuntimeError`` at a request without an answer.
    """

    def client(number: int) -> list[Answered]:
        return [_ask(pipeline, store, asked) for asked in requests[number::clients]]

    started = time.monotonic()
    with ThreadPoolExecutor(clients, thread_name_prefix="client") as threads:
        answers = [answer for part in threads.map(client, range(clients)) for answer in part]
    return answers, time.monotonic() - started


def _ask(pipeline: Pipeline, store: WatchedStore, asked: Asked) -> Answered:
    started = time.monotonic()
    (result,) = pipeline.submit([InferRow(adapter=asked.adapter.key, text=asked.text)]).result(_TIMEOUT)
    seconds = time.monotonic() - started
    if result.error is not None:
        raise RuntimeError(f"{asked.adapter.key}: {result.error.reason}: {result.error.message}")
    return Answered(seconds, store.source_since(asked.adapter.artifact.digest, started))
