"""The threads of an engine: each stages a batch and computes it, while others do the same with theirs."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, Protocol

import torch

from hmi_api.errors import Damaged, HmiError, InvalidInput, NotReady
from hmi_api.internal.inference import RowResult
from hmi_runtime.cache.adapter_cache import AdapterId
from hmi_runtime.serving.batching import Batcher, BatchLimits
from hmi_runtime.serving.cores import Cores
from hmi_runtime.serving.engine import Engine
from hmi_runtime.serving.requests import DEADLINE_REASON, RowGroup, row_error
from hmi_runtime.serving.staging import BatchRow, StagedBatch, single

log = logging.getLogger(__name__)
P = ParamSpec("P")


class PipelineEvents(Protocol):
    """Receives what a pipeline does, for metrics. Called from its threads: be quick and thread-safe."""

    def staged(self, batch: StagedBatch) -> None:
        """The windows of a batch were looked up."""

    def computed(self, batch: StagedBatch, compute_seconds: float) -> None:
        """A batch was computed."""

    def quarantined(self) -> None:
        """An adapter was quarantined."""


@dataclass(slots=True)
class _Failures:
    count: int = 0
    refused_until: float = float("-inf")


class Quarantine:
    """Refuses rows of an adapter for ``seconds`` after ``after`` consecutive failures. Thread-safe.

    After a row has failed, its whole batch is computed again, row by row. An adapter whose rows all fail
    would slow down the other tenants in its batches. When the time is over its next row is tried: success
    ends the quarantine, another failure renews it.
    """

    def __init__(self, after: int, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._after = after
        self._seconds = seconds
        self._clock = clock
        self._records: dict[AdapterId, _Failures] = {}
        self._lock = threading.Lock()

    def error_for(self, adapter: AdapterId) -> NotReady | None:
        """Return the error for rows of a quarantined adapter; None if it is not quarantined."""
        record = self._records.get(adapter)
        if record is None or record.refused_until <= self._clock():
            return None
        return NotReady(
            "AdapterQuarantined",
            f"The last {record.count} rows of {adapter} could not be computed, so it is refused for "
            f"{self._seconds:.0f} seconds at a time; the runtime's log has the cause.",
        )

    def record_failure(self, adapter: AdapterId) -> bool:
        """Count a row that failed alone; return whether the adapter is quarantined now."""
        with self._lock:
            record = self._records.setdefault(adapter, _Failures())
            record.count += 1
            refused = record.count >= self._after
            if refused:
                record.refused_until = self._clock() + self._seconds
        if refused:
            log.error("adapter %s is refused for %.0f s: %d failures", adapter, self._seconds, record.count)
        return refused

    def record_success(self, adapter: AdapterId) -> None:
        """Reset the failures of an adapter after one of its rows was computed."""
        if adapter in self._records:
            with self._lock:
                self._records.pop(adapter, None)


OnResult = Callable[[BatchRow, RowResult], None]
"""Sets a row's result and releases its adapter; called once for each row that entered the batcher."""


class EngineWorker:
    """Takes row groups from a batcher, stages and computes them, and gives every row its result.

    ``cores.threads`` threads do so. A waiting row goes to the first that is free.

    If a batch fails, for whatever reason, each of its rows is tried once more alone, so that one bad row
    does not fail the others. Adapters whose rows keep failing are quarantined.
    """

    def __init__(
        self,
        engine: Engine,
        batcher: Batcher[RowGroup],
        limits: BatchLimits,
        on_result: OnResult,
        events: PipelineEvents,
        quarantine: Quarantine,
        cores: Cores,
    ) -> None:
        self.engine = engine
        self.batcher = batcher
        self.limits = limits
        self._on_result = on_result
        self._events = events
        self._quarantine = quarantine
        self._cores = cores
        name = engine.key.base_digest.removeprefix("sha256:")[:8]
        self._threads = [
            threading.Thread(target=self._run_batches, name=f"batch-{number}-{name}", daemon=True)
            for number in range(cores.threads)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float) -> None:
        """Compute what is queued, then end the threads; return after ``timeout`` seconds at the latest."""
        self.batcher.close()
        until = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _run_batches(self) -> None:
        self._cores.limit_staging()
        with torch.inference_mode():
            while self._run_next():
                pass

    def _run_next(self) -> bool:
        """Run the next batch; return False after the last. A waiting thread refers to no batch or table."""
        groups = self.batcher.take()
        if groups is None:
            return False
        rows = self._runnable_rows(groups)
        if rows:
            self._run(rows)
        return True

    def _runnable_rows(self, groups: list[RowGroup]) -> list[BatchRow]:
        """Return the rows to compute; abandoned and quarantined ones get their error here."""
        now = time.monotonic()
        rows = []
        for group in groups:
            abandoned = group.request.is_abandoned(now)
            for index, adapter in group.rows:
                row = BatchRow(group.request, index, adapter, group.text)
                error = self._quarantine.error_for(adapter.id)
                if abandoned:
                    error = NotReady(DEADLINE_REASON, "The request waited too long; try again.")
                if error is not None:
                    self._set_error(row, error)
                else:
                    rows.append(row)
        return rows

    def _run(self, rows: list[BatchRow]) -> None:
        try:
            batch = self.engine.stage(rows)
        except Exception as failure:  # noqa: BLE001  # the thread continues; these rows get an error
            error = _logged(rows, failure)
        else:
            self._notify(self._events.staged, batch)
            for row, slot_error in batch.failed:
                self._set_error(row, slot_error)
            self._compute(batch)
            return
        if len(rows) == 1:
            self._record_failure(rows[0], error)
            self._set_error(rows[0], error)
            return
        for row in rows:
            self._run([row])

    def _compute(self, batch: StagedBatch) -> None:
        try:
            with self._cores.share(batch.tokens):
                results = self._results(batch)
        finally:
            self.engine.release(batch)
        for row, result in zip(batch.rows, results, strict=True):
            self._on_result(row, result)

    def _results(self, batch: StagedBatch) -> list[RowResult]:
        """Return one result for each row of a batch; computed row by row if the batch fails."""
        started = time.monotonic()
        try:
            results = self.engine.compute(batch)
        except Exception as failure:  # noqa: BLE001  # the thread continues; these rows get an error
            error = _logged(batch.rows, failure)
        else:
            # Counted before the results are sent: a caller that has its results finds them in the metrics.
            self._notify(self._events.computed, batch, time.monotonic() - started)
            for row in batch.rows:
                self._quarantine.record_success(row.adapter.id)
            return results
        # Outside the except block, so that the exception's references to tensors are gone.
        if len(batch.rows) == 1:
            self._record_failure(batch.rows[0], error)
            return [RowResult(error=row_error(error))]
        return [
            result for number in range(len(batch.rows)) for result in self._results(single(batch, number))
        ]

    def _record_failure(self, row: BatchRow, error: HmiError) -> None:
        """Count a row that failed alone against its adapter, unless its text is invalid."""
        if not isinstance(error, InvalidInput) and self._quarantine.record_failure(row.adapter.id):
            self._notify(self._events.quarantined)

    @staticmethod
    def _notify(event: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
        """Report an event. If that fails, the rows still get their results, and the thread continues."""
        try:
            event(*arguments, **named)
        except Exception:
            log.exception("an event could not be counted")

    def _set_error(self, row: BatchRow, error: HmiError) -> None:
        self._on_result(row, RowResult(error=row_error(error)))


def _logged(rows: Sequence[BatchRow], failure: Exception) -> HmiError:
    """Log why rows could not be staged or computed together; return the error for a row that is alone."""
    if len(rows) > 1:
        log.warning("a batch of %d rows failed; each is tried by itself", len(rows), exc_info=failure)
    elif isinstance(failure, HmiError):
        log.warning("a row of adapter %s failed: %s", rows[0].adapter.id, failure)
    else:
        log.error("a row of adapter %s failed", rows[0].adapter.id, exc_info=failure)
    if isinstance(failure, HmiError):
        return failure
    return Damaged("InferenceFailed", "The runtime could not compute this row; its log has the cause.")
