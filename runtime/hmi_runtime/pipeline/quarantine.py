"""Adapters whose rows keep failing are refused for a while, so that they do not break others' batches.

A row that fails makes its whole batch be computed again, row by row. An adapter whose every row fails would
so make each of its neighbours' batches several times as dear, for as long as its tenant goes on asking.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from hmi_api.errors import NotReady
from hmi_runtime.cache import AdapterId

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Record:
    failures: int = 0
    refused_until: float = float("-inf")


class Quarantine:
    """Counts an adapter's failures in a row; after ``after`` of them it is refused for ``seconds``.

    Then its next row is tried: an answer clears it, one more failure refuses it again. Thread-safe.
    """

    def __init__(self, after: int, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._after = after
        self._seconds = seconds
        self._clock = clock
        self._records: dict[AdapterId, _Record] = {}
        self._lock = threading.Lock()

    def refusal(self, adapter: AdapterId) -> NotReady | None:
        """Return why a row of ``adapter`` is not tried, or None when it is."""
        record = self._records.get(adapter)
        if record is None or record.refused_until <= self._clock():
            return None
        return NotReady(
            "AdapterQuarantined",
            f"The last {record.failures} rows of {adapter} could not be computed, so it is refused for "
            f"{self._seconds:.0f} seconds at a time; the runtime's log has the cause.",
        )

    def failed(self, adapter: AdapterId) -> bool:
        """Count a row that failed by itself; return whether the adapter is refused from now on."""
        with self._lock:
            record = self._records.setdefault(adapter, _Record())
            record.failures += 1
            refused = record.failures >= self._after
            if refused:
                record.refused_until = self._clock() + self._seconds
        if refused:
            log.error(
                "adapter %s is refused for %.0f s: %d failures", adapter, self._seconds, record.failures
            )
        return refused

    def answered(self, adapter: AdapterId) -> None:
        """Forget an adapter's failures: a row of it was computed."""
        if adapter in self._records:
            with self._lock:
                self._records.pop(adapter, None)
