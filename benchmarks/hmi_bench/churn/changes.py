"""What changes while clients ask: new versions, forgotten and created adapters, refreshed Domains.

Each change uses loader and pipeline in the order of ``server.control_loop``.
"""

import random
import time
from collections import Counter, deque
from collections.abc import Sequence

from hmi_bench.churn.history import Generation, History
from hmi_bench.churn.models import AdapterMaker, ChurnDomain
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.serving.loaded import LoadedAdapter

_FORGET_SHARE = 0.15
_MOST_FORGOTTEN = 0.1  # of all adapters


class Changer:
    """Makes one change after another, from one thread. The order depends on ``seed`` alone."""

    def __init__(
        self,
        loader: AdapterLoader,
        domains: Sequence[ChurnDomain],
        keys: Sequence[str],
        history: History,
        *,
        grace: float,
        seed: int,
    ) -> None:
        """Register nothing yet. A replaced version is unloaded after ``grace`` seconds."""
        self.maker = AdapterMaker()
        self.counts: Counter[str] = Counter()
        self._loader = loader
        self._domain_of = {key: domains[number % len(domains)] for number, key in enumerate(keys)}
        self._domains = domains
        self._history = history
        self._grace = grace
        self._random = random.Random(seed)  # noqa: S311 - no secrets
        self._current: dict[str, tuple[Generation, LoadedAdapter]] = {}
        self._forgotten: list[str] = []
        self._replaced: deque[tuple[float, LoadedAdapter]] = deque()

    def create_all(self) -> None:
        """Make and activate the first version of every adapter."""
        for key in self._domain_of:
            self._activate(key, 1)

    def change(self) -> None:
        """Replace an adapter by its next version, forget one, or create a forgotten one again."""
        self._unload_replaced()
        if self._forgotten and len(self._forgotten) >= _MOST_FORGOTTEN * len(self._domain_of):
            key = self._forgotten.pop(self._random.randrange(len(self._forgotten)))
            self._activate(key, 1)
            self.counts["created again"] += 1
            return
        key = self._random.choice(list(self._current))
        if self._random.random() < _FORGET_SHARE:
            self._forget(key)
            self._forgotten.append(key)
            self.counts["forgotten"] += 1
        else:
            self._activate(key, self._current[key][0].serving.version + 1)
            self.counts["new versions"] += 1

    def refresh(self) -> None:
        """Publish a Domain's next version, with another table, and move its adapters to it."""
        domain = self._domains[self.counts["refreshes"] % len(self._domains)]
        domain.refresh()
        version = domain.serving.version.version
        for key, (generation, before) in self._current.items():
            if self._domain_of[key] is domain:
                moved = generation.serving.model_copy(update={"domain_version": version})
                loaded = self._loader.load(moved, domain.serving, before)
                self._loader.activate(loaded)
                self._current[key] = generation, loaded
        self.counts["refreshes"] += 1

    def forget_all(self) -> None:
        """Forget every adapter and unload every version."""
        for key in list(self._current):
            self._forget(key)
        while self._replaced:
            self._loader.unload(self._replaced.popleft()[1])

    def _activate(self, key: str, version: int) -> None:
        domain = self._domain_of[key]
        generation = self.maker.make(key, version, domain)
        old = self._current.get(key)
        loaded = self._loader.load(generation.serving, domain.serving, old[1] if old else None)
        self._history.begin(key, generation)
        self._loader.activate(loaded)
        self._history.end_previous(key)
        self._current[key] = generation, loaded
        if old is not None:
            self._replaced.append((time.monotonic() + self._grace, old[1]))

    def _forget(self, key: str) -> None:
        _, loaded = self._current.pop(key)
        self._history.begin(key, None)
        self._loader.pipeline.deactivate(key)
        self._history.end_previous(key)
        self._loader.unload(loaded)

    def _unload_replaced(self) -> None:
        while self._replaced and self._replaced[0][0] <= time.monotonic():
            self._loader.unload(self._replaced.popleft()[1])
