"""Thousands of adapters, one for each tenant: made, published and registered."""

import os
import shutil
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from hmi_api.internal.runtimes import AdapterServing
from hmi_bench.runtime_setup import PublishedDomain
from hmi_bench.serving.hmi import random_adapter
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.models.encoder import UpperLayers
from hmi_runtime.server.loader import AdapterLoader

_LABELS = 8
_MEASURED = 20
_COPIES_ON_DISK = 2  # one in the store, one in the runtime's disk tier
_MARGIN = 1.2


@dataclass(frozen=True)
class Registering:
    """Median seconds of registering one more adapter when there are ``count``."""

    count: int
    publish: float
    """Writing it to the store."""
    load: float
    """Fetching it to the runtime's disk, verifying and checking it."""
    route: float
    """Letting it answer new rows."""


class Population:
    """Adapters of one shape with different bytes, so that each has a digest of its own."""

    def __init__(self, domain: PublishedDomain, rank: int) -> None:
        """Publish the first adapter to learn ``artifact_bytes``; register none."""
        self.domain = domain
        self.adapters: list[AdapterServing] = []
        upper = UpperLayers(domain.base.encoder(), domain.split)
        self._template = replace(
            random_adapter(upper, rank, _LABELS, seed=0),
            base_digest=domain.base.digest,
            layers_digest=domain.layers_digest,
        ).as_stored()
        self.artifact_bytes = self.publish(0).artifact.bytes

    @property
    def nbytes(self) -> int:
        """Bytes of one adapter's tensors in host memory."""
        return self._template.nbytes

    def weights(self, number: int) -> AdapterWeights:
        """Return the weights of adapter ``number``: the template with another head."""
        random = torch.Generator().manual_seed(number)
        head = self._template.head
        bias = torch.randn(head.bias.shape, generator=random) * 0.02
        return replace(self._template, head=replace(head, bias=bias))

    def publish(self, number: int) -> AdapterServing:
        """Publish adapter ``number``, the only one of its tenant."""
        return self.domain.publish(f"tenant-{number:05d}/task", self.weights(number))

    def grow(self, loader: AdapterLoader, count: int) -> Registering:
        """Publish and register adapters up to ``count``; time the last few, one at a time."""
        start = len(self.adapters)
        timed_from = max(start, count - _MEASURED)
        with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as workers:
            self.adapters += workers.map(partial(self._bring_up, loader), range(start, timed_from))
        publish: list[float] = []
        load: list[float] = []
        route: list[float] = []
        for number in range(timed_from, count):
            with _added_to(publish):
                adapter = self.publish(number)
            with _added_to(load):
                loaded = loader.load(adapter, self.domain.serving)
            with _added_to(route):
                loader.activate(loaded)
            self.adapters.append(adapter)
        return Registering(
            count, statistics.median(publish), statistics.median(load), statistics.median(route)
        )

    def _bring_up(self, loader: AdapterLoader, number: int) -> AdapterServing:
        adapter = self.publish(number)
        loader.activate(loader.load(adapter, self.domain.serving))
        return adapter


def require_disk(folder: Path, adapters: int, nbytes: int) -> None:
    """Raise ``OSError`` if ``folder``'s disk has no room for so many adapters and their local copies."""
    needed = int(adapters * nbytes * _COPIES_ON_DISK * _MARGIN)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{adapters:,} adapters need {needed / 1e9:.1f} GB below {folder}, {free / 1e9:.1f} GB are free; "
            "give a smaller --count, or set TMPDIR to a folder on a larger disk."
        )


@contextmanager
def _added_to(seconds: list[float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - started)
