"""The two threads of an engine: one stages the next batch while the other computes this one."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hmi_api.errors import Damaged, HmiError, NotReady
from hmi_api.wire import RowResult
from hmi_runtime.pipeline.batcher import Batcher
from hmi_runtime.pipeline.engine import Engine
from hmi_runtime.pipeline.events import PipelineEvents
from hmi_runtime.pipeline.rows import DEADLINE_REASON, Group, row_error
from hmi_runtime.pipeline.staging import BatchRow, StagedBatch

log = logging.getLogger(__name__)

Answer = Callable[[BatchRow, RowResult], None]
"""Answers a row and lets its adapter go; called exactly once for every row that entered the batcher."""


@dataclass(frozen=True, slots=True)
class _Ready:
    batch: StagedBatch
    staging_seconds: float


class EngineWorker:
    """Takes groups off a batcher, stages and computes them, answers every row."""

    def __init__(
        self, engine: Engine, batcher: Batcher[Group], max_rows: int, answer: Answer, events: PipelineEvents
    ) -> None:
        self.engine = engine
        self.batcher = batcher
        self.max_rows = max_rows
        self._answer = answer
        self._events = events
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
                if late:
                    self._refuse(row, NotReady(DEADLINE_REASON, "The request waited too long; try again."))
                else:
                    rows.append(row)
        return rows

    def _stage(self, rows: list[BatchRow]) -> None:
        started = time.monotonic()
        try:
            batch = self.engine.stage(rows)
        except Exception as failure:  # noqa: BLE001  # the thread goes on; these rows get their answer
            self._refuse_all(rows, failure)
            return
        for row, error in batch.refused:
            self._refuse(row, error)
        self._staged.put(_Ready(batch, time.monotonic() - started))

    def _compute_batches(self) -> None:
        with torch.inference_mode():
            while (ready := self._staged.get()) is not None:
                self._compute(ready)

    def _compute(self, ready: _Ready) -> None:
        started = time.monotonic()
        try:
            results = self.engine.compute(ready.batch)
        except Exception as failure:  # noqa: BLE001  # the thread goes on; these rows get their answer
            self._refuse_all(ready.batch.rows, failure)
            return
        finally:
            self.engine.finish(ready.batch)
        # Counted before it is answered, so that who has an answer finds it in the counts.
        self._events.computed(ready.batch, ready.staging_seconds, time.monotonic() - started)
        for row, result in zip(ready.batch.rows, results, strict=True):
            self._answer(row, result)

    def _refuse(self, row: BatchRow, error: HmiError) -> None:
        self._answer(row, RowResult(error=row_error(error)))

    def _refuse_all(self, rows: Sequence[BatchRow], failure: Exception) -> None:
        if isinstance(failure, HmiError):
            error = failure
        else:
            log.error("a batch of %d rows failed", len(rows), exc_info=failure)
            error = Damaged(
                "InferenceFailed", "The runtime could not compute this row; its log has the cause."
            )
        for row in rows:
            self._refuse(row, error)
