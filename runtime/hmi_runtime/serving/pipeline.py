"""The path of a request through a runtime: find the adapters, tokenise, prefetch, batch, execute."""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from hmi_api.errors import Damaged, NotReady
from hmi_api.internal.inference import InferRow, RowResult
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.cache.adapter_cache import AdapterCache
from hmi_runtime.serving.batching import Batcher, BatchLimits
from hmi_runtime.serving.cores import Cores
from hmi_runtime.serving.engine import Engine
from hmi_runtime.serving.loaded import EngineKey, LoadedAdapter
from hmi_runtime.serving.preparation import AdapterPrefetch, Preparers, group_rows
from hmi_runtime.serving.requests import PendingRequest, RowGroup
from hmi_runtime.serving.staging import BatchRow
from hmi_runtime.serving.worker import EngineWorker, PipelineEvents, Quarantine

log = logging.getLogger(__name__)

_SHUT_DOWN = "This runtime shut down before it had computed the row; try again."


@dataclass(frozen=True)
class PipelineLimits:
    """Limits of queues and waits; times in seconds. ``max_queue`` counts rows without a result.

    After ``quarantine_failures`` consecutive failed rows an adapter is refused for ``quarantine_seconds``.
    """

    batch: BatchLimits = field(default_factory=BatchLimits)
    max_wait: float = 0.002
    max_queue: int = 2048
    max_length: int = 512
    request_timeout: float = 30.0
    quarantine_failures: int = 3
    quarantine_seconds: float = 30.0


class Pipeline:
    """Answers requests whose rows may be of any tenant, task, Domain and base model."""

    def __init__(
        self,
        cache: AdapterCache[AdapterWeights],
        limits: PipelineLimits,
        *,
        tokenizer_threads: int = 1,
        cores: Cores | None = None,
        events: PipelineEvents,
    ) -> None:
        """``cores`` compute the batches of all engines; one core when absent."""
        self._cache = cache
        self._limits = limits
        self._events = events
        self._cores = cores or Cores(1)
        # Read without a lock: assigning and removing an item are atomic.
        self._adapters: dict[str, LoadedAdapter] = {}
        self._workers: dict[EngineKey, EngineWorker] = {}
        self._preparers = Preparers(self._prepare, tokenizer_threads)
        self._quarantine = Quarantine(limits.quarantine_failures, limits.quarantine_seconds)
        self._unanswered = 0
        self._requests: set[PendingRequest] = set()  # without a result; guarded by ``_idle``
        self._draining = False
        self._idle = threading.Condition()

    # --- engines and adapters -----------------------------------------------------------------------

    def add_engine(self, engine: Engine) -> None:
        """Start the worker of an engine."""
        limits = self._limits.batch
        rows = min(limits.max_rows, engine.slots.max_at_once)
        limits = replace(limits, max_rows=rows)
        if not engine.computes_padding:
            limits = replace(limits, max_padding=1.0)
        batcher: Batcher[RowGroup] = Batcher(limits, self._limits.max_wait)
        worker = EngineWorker(
            engine, batcher, limits, self._set_result, self._events, self._quarantine, self._cores
        )
        self._workers[engine.key] = worker
        worker.start()

    def engine(self, key: EngineKey) -> Engine | None:
        """Return the engine of a base model and split; None if there is none."""
        worker = self._workers.get(key)
        return None if worker is None else worker.engine

    def engines(self) -> list[Engine]:
        """Return all engines."""
        return [worker.engine for worker in list(self._workers.values())]

    def activate(self, adapter: LoadedAdapter) -> None:
        """Answer new rows for this adapter's key with this version; rows in progress keep their version."""
        self._adapters[adapter.id.key] = adapter

    def deactivate(self, key: str) -> None:
        """Accept no new rows for an adapter; rows in progress still get their results."""
        self._adapters.pop(key, None)

    @property
    def unanswered(self) -> int:
        """Rows that were accepted and have no result yet."""
        return self._unanswered

    # --- requests -----------------------------------------------------------------------------------

    def submit(self, rows: Sequence[InferRow], *, tenant_id: str | None = None) -> Future[list[RowResult]]:
        """Accept a request; the future gives one result for each row, in order, and never raises.

        With ``tenant_id`` only adapters of that tenant answer, since a tenant's name can be used again.
        Cancelling the future drops the rows whose computation has not begun.
        """
        deadline = time.monotonic() + self._limits.request_timeout
        request = PendingRequest(rows, deadline, self._count_out, tenant_id)
        error = self._count_in(request)
        if error is not None:
            for index in range(len(rows)):
                request.set_error(index, error)
        elif rows and not self._preparers.submit(request):  # it was drained meanwhile
            request.end(NotReady("Draining", _SHUT_DOWN))
        return request.future

    def refuse_new(self) -> None:
        """Refuse requests from now on; those in progress continue."""
        self._draining = True

    def drain(self, timeout: float) -> bool:
        """Refuse new requests, finish those in progress, and stop.

        Rows without a result after ``timeout`` seconds get the error Draining; return False if there were.
        """
        deadline = time.monotonic() + timeout
        self.refuse_new()
        with self._idle:
            idle = self._idle.wait_for(lambda: self._unanswered == 0, timeout)
        self._preparers.stop()
        for worker in self._workers.values():
            worker.stop(max(0.0, deadline - time.monotonic()))
        with self._idle:
            left = list(self._requests)
        for request in left:
            request.end(NotReady("Draining", _SHUT_DOWN))
        return idle

    def _count_in(self, request: PendingRequest) -> NotReady | None:
        """Count new rows; return the error if they are refused. Refused rows count until it is set."""
        rows = len(request.rows)
        with self._idle:
            waiting = self._unanswered
            self._unanswered += rows
            if rows:
                self._requests.add(request)
            if self._draining:
                return NotReady("Draining", "This runtime is shutting down; try again.")
            if waiting + rows > self._limits.max_queue:
                return NotReady("Overloaded", f"{waiting} rows are waiting already; try again shortly.")
            return None

    def _count_out(self, request: PendingRequest) -> None:
        with self._idle:
            self._unanswered -= 1
            if request.is_answered:
                self._requests.discard(request)
            if self._unanswered == 0:
                self._idle.notify_all()

    def _prepare(self, request: PendingRequest) -> None:
        """Tokenise and group the rows; each group is batched once its adapters are in host memory."""
        for key, rows in self._find_adapters(request).items():
            worker = self._workers[key]
            base = worker.engine.base
            max_length = min(self._limits.max_length, base.config.positions)
            try:
                groups = group_rows(
                    request, rows, base.tokenizer, max_length=max_length, limits=worker.limits
                )
            except Exception:
                log.exception("a request could not be tokenised")
                error = Damaged("TokenizerFailed", "The text could not be tokenised; the log has the cause.")
                for index, _ in rows:
                    if not request.has_result(index):
                        request.set_error(index, error)
                continue
            for group in groups:
                AdapterPrefetch(group, worker.batcher.put).start(self._cache)

    def _find_adapters(self, request: PendingRequest) -> dict[EngineKey, list[tuple[int, LoadedAdapter]]]:
        """Return the rows whose adapter is loaded, by engine; the others get their error here."""
        found: dict[EngineKey, list[tuple[int, LoadedAdapter]]] = {}
        for index, row in enumerate(request.rows):
            adapter = self._adapters.get(row.adapter)
            if adapter is None or _belongs_to_another(adapter, request.tenant_id):
                message = f"{row.adapter} is not loaded here yet; try again shortly."
                request.set_error(index, NotReady("NotLoaded", message))
            else:
                found.setdefault(adapter.engine, []).append((index, adapter))
        return found

    def _set_result(self, row: BatchRow, result: RowResult) -> None:
        self._cache.release(row.adapter.id)
        row.request.set_result(row.index, result)


def _belongs_to_another(adapter: LoadedAdapter, tenant_id: str | None) -> bool:
    """Return whether the adapter's owner is known and is not ``tenant_id``."""
    return tenant_id is not None and bool(adapter.tenant_id) and adapter.tenant_id != tenant_id
