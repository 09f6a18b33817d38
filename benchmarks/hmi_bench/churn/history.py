"""Which version of an adapter may have answered a request, from when versions were activated and retired.

A request sees one moment between its submission and its answer, and nobody knows which. So every version
that served at some time in between is allowed, and no other.
"""

import threading
import time
from collections import defaultdict
from dataclasses import dataclass

from torch import Tensor

from hmi_api.internal.runtimes import AdapterServing

_FOREVER = float("inf")


@dataclass(frozen=True, eq=False)
class Generation:
    """One version of one adapter, with the reference's answers. A key that is created again starts at 1."""

    number: int
    serving: AdapterServing
    answers: Tensor  # (texts, labels) float32, logarithms of probabilities


@dataclass
class _Period:
    """What a key answered with for a while; None: it was not served."""

    generation: Generation | None
    since: float
    until: float = _FOREVER


class History:
    """The periods of every key. Thread-safe; times are monotonic seconds.

    Periods overlap while a change is in progress: the new one begins before it is made, the old one ends
    after.
    """

    def __init__(self) -> None:
        self._periods: defaultdict[str, list[_Period]] = defaultdict(list)
        self._lock = threading.Lock()

    def begin(self, key: str, generation: Generation | None) -> None:
        """Note that ``key`` is about to be answered by ``generation``, or by none."""
        with self._lock:
            self._periods[key].append(_Period(generation, time.monotonic()))

    def end_previous(self, key: str) -> None:
        """Note that no new request for ``key`` can see the period before the last one."""
        with self._lock:
            if len(self._periods[key]) > 1:
                self._periods[key][-2].until = time.monotonic()

    def allowed(self, key: str, submitted: float) -> list[Generation | None]:
        """Return what may answer a request that was submitted then and is answered now."""
        with self._lock:
            found = []
            for period in reversed(self._periods[key]):
                if period.until < submitted:
                    break
                found.append(period.generation)
        return found

    def retired_before_answer(self, key: str, submitted: float, grace: float) -> bool:
        """Return whether a version that may have accepted the request has been unloaded meanwhile."""
        due = time.monotonic() - grace
        with self._lock:
            return any(submitted <= period.until <= due for period in self._periods[key])
