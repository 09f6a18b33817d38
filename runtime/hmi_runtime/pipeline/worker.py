"""The two threads of an engine: one stages the next batch while the other computes this one."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hmi_api.errors import Damaged, HmiError, InvalidInput, NotReady
from hmi_api.internal.inference import RowResult
from hmi_runtime.pipeline.batcher import Batcher
from hmi_runtime.pipeline.engine import Engine
from hmi_runtime.pipeline.events import PipelineEvents
from hmi_runtime.pipeline.quarantine import Quarantine
from hmi_runtime.pipeline.rows import DEADLINE_REASON, Group, row_error
from hmi_runtime.pipeline.staging import BatchRow, StagedBatch, single

log = logging.getLogger(__name__)

Answer = Callable[[BatchRow, RowResult], None]
"""Answers a row and lets its adapter go; called exactly once for every row that entered the batcher."""


@dataclass(frozen=True, slots=True)
class _Ready:
    batch: StagedBatch
    staging_seconds: float


class EngineWorker:
    """Takes groups off a batcher, stages and computes them, answers every row.

    When a batch fails, for whatever reason, each of its rows is tried once more by itself: whoever shares a
    batch with a row that cannot be computed gets an answer all the same. An adapter whose rows keep failing
    is refused for a while.
    """

    def __init__(
        self,
        engine: Engine,
        batcher: Batcher[Group],
        max_rows: int,
        answer: Answer,
        events: PipelineEvents,
        quarantine: Quarantine,
    ) -> None:
        self.engine = engine
        self.batcher = batcher
        self.max_rows = max_rows
        self._answer = answer
        self._events = events
        self._quarantine = quarantine
        # One batch computes and one waits, staged: a second staged one would only add latency.
        self._staged: queue.Queue[_Ready | None] = queue.Queue(maxsize=1)
        name = engine.key.base_digest.removeprefix("sha256:")[:8]
        self._threads = [
            threading.Thread(target=self._stage_batches, name=f"stage-{name}", daemon=True),
            threading.Thread(target=self._compute_batches, name=f"compute-{name}", daemon=True),
        ]

    def start(self) -> None:
        """Start both threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float) -> None:
        """Answer what is queued, then end; returns after ``timeout`` seconds in any case."""
        self.batcher.close()
        until = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _stage_batches(self) -> None:
        with torch.inference_mode():
            while (groups := self.batcher.take()) is not None:
                rows = self._wanted_rows(groups)
                if rows:
                    self._stage(rows)
        self._staged.put(None)

    def _wanted_rows(self, groups: list[Group]) -> list[BatchRow]:
        """Return the rows that somebody still waits for; the others are answered with an error."""
        now = time.monotonic()
        rows = []
        for group in groups:
            late = group.request.over(now)
            for index, route in group.rows:
                row = BatchRow(group.request, index, route, group.text)
                refusal = self._quarantine.refusal(route.adapter)
                if late:
                    refusal = NotReady(DEADLINE_REASON, "The request waited too long; try again.")
                if refusal is not None:
                    self._refuse(row, refusal)
                else:
                    rows.append(row)
        return rows

    def _stage(self, rows: list[BatchRow]) -> None:
        started = time.monotonic()
        try:
            batch = self.engine.stage(rows)
        except Exception as failure:  # noqa: BLE001  # the thread goes on; these rows get their answer
            error = _logged(rows, failure)
        else:
            for row, refusal in batch.refused:
                self._refuse(row, refusal)
            self._staged.put(_Ready(batch, time.monotonic() - started))
            return
        if len(rows) == 1:
            self._count_failure(rows[0], error)
            self._refuse(rows[0], error)
            return
        for row in rows:
            self._stage([row])

    def _compute_batches(self) -> None:
        with torch.inference_mode():
            while (ready := self._staged.get()) is not None:
                self._compute(ready)

    def _compute(self, ready: _Ready) -> None:
        try:
            results = self._results(ready)
        finally:
            self.engine.finish(ready.batch)
        for row, result in zip(ready.batch.rows, results, strict=True):
            self._answer(row, result)

    def _results(self, ready: _Ready) -> list[RowResult]:
        """Return one result for each row of a batch, computed row by row where the whole cannot be."""
        batch, started = ready.batch, time.monotonic()
        try:
            results = self.engine.compute(batch)
        except Exception as failure:  # noqa: BLE001  # the thread goes on; these rows get their answer
            error = _logged(batch.rows, failure)
        else:
            # Counted before it is answered, so that who has an answer finds it in the counts.
            self._events.computed(batch, ready.staging_seconds, time.monotonic() - started)
            for row in batch.rows:
                self._quarantine.answered(row.route.adapter)
            return results
        # Here, and not where the failure was caught: what it held in memory is free by now.
        if len(batch.rows) == 1:
            self._count_failure(batch.rows[0], error)
            return [RowResult(error=row_error(error))]
        share = ready.staging_seconds / len(batch.rows)
        alone = (_Ready(single(batch, number), share) for number in range(len(batch.rows)))
        return [result for one in alone for result in self._results(one)]

    def _count_failure(self, row: BatchRow, error: HmiError) -> None:
        """Count a row that failed by itself against its adapter, unless it is the text that is wrong."""
        if not isinstance(error, InvalidInput) and self._quarantine.failed(row.route.adapter):
            self._events.quarantined()

    def _refuse(self, row: BatchRow, error: HmiError) -> None:
        self._answer(row, RowResult(error=row_error(error)))


def _logged(rows: Sequence[BatchRow], failure: Exception) -> HmiError:
    """Log why rows could not be staged or computed together, and return the error for one that is alone."""
    if len(rows) > 1:
        log.warning("a batch of %d rows failed; each is tried by itself", len(rows), exc_info=failure)
    elif isinstance(failure, HmiError):
        log.warning("a row of adapter %s failed: %s", rows[0].route.adapter, failure)
    else:
        log.error("a row of adapter %s failed", rows[0].route.adapter, exc_info=failure)
    if isinstance(failure, HmiError):
        return failure
    return Damaged("InferenceFailed", "The runtime could not compute this row; its log has the cause.")
