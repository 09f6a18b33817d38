"""The whole path of a request: routes, preparation, engines, answers; bounded, drained at the end."""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from hmi_api.errors import Damaged, NotReady
from hmi_api.internal.inference import InferRow, RowResult
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.cache import AdapterCache
from hmi_runtime.pipeline.batcher import Batcher
from hmi_runtime.pipeline.batches import BatchLimits
from hmi_runtime.pipeline.engine import Engine, EngineKey
from hmi_runtime.pipeline.events import PipelineEvents, Unobserved
from hmi_runtime.pipeline.preparation import Arrival, group_rows
from hmi_runtime.pipeline.quarantine import Quarantine
from hmi_runtime.pipeline.rows import Group, PendingRequest, Route
from hmi_runtime.pipeline.staging import BatchRow
from hmi_runtime.pipeline.worker import EngineWorker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PipelineLimits:
    """How much waits and how long. ``max_queue`` counts rows not yet answered; times are seconds.

    After ``quarantine_failures`` failed rows in a row an adapter is refused for ``quarantine_seconds``.
    """

    batch: BatchLimits = field(default_factory=BatchLimits)
    max_wait: float = 0.002
    max_queue: int = 2048
    max_length: int = 512
    request_timeout: float = 30.0
    quarantine_failures: int = 3
    quarantine_seconds: float = 30.0


class Pipeline:
    """Answers requests whose rows may belong to any tenant, task, domain and base model at once."""

    def __init__(
        self,
        cache: AdapterCache[AdapterWeights],
        limits: PipelineLimits,
        *,
        tokenizer_threads: int = 1,
        events: PipelineEvents | None = None,
    ) -> None:
        self._cache = cache
        self._limits = limits
        self._events = events or Unobserved()
        self._routes: dict[str, tuple[EngineKey, Route]] = {}
        self._workers: dict[EngineKey, EngineWorker] = {}
        self._preparers = ThreadPoolExecutor(tokenizer_threads, thread_name_prefix="tokenise")
        self._quarantine = Quarantine(limits.quarantine_failures, limits.quarantine_seconds)
        self._unanswered = 0
        self._draining = False
        self._idle = threading.Condition()

    # --- what is served -----------------------------------------------------------------------------

    def add_engine(self, engine: Engine) -> None:
        """Start computing for a base model."""
        limits = self._limits.batch
        rows = min(limits.max_rows, engine.slots.most_at_once)
        limits = replace(limits, max_rows=rows)
        batcher: Batcher[Group] = Batcher(limits, self._limits.max_wait)
        worker = EngineWorker(engine, batcher, rows, self._answer, self._events, self._quarantine)
        self._workers[engine.key] = worker
        worker.start()

    def engine(self, key: EngineKey) -> Engine | None:
        """Return the engine for a base model and split, if one runs."""
        worker = self._workers.get(key)
        return None if worker is None else worker.engine

    def engines(self) -> list[Engine]:
        """Return the engines that run."""
        return [worker.engine for worker in list(self._workers.values())]

    def set_route(self, engine: EngineKey, route: Route) -> None:
        """Serve an adapter's name with this version from the next row on; rows under way keep theirs."""
        self._routes[route.adapter.key] = (engine, route)

    def remove_route(self, key: str) -> None:
        """Serve an adapter's name no more; rows under way are still answered."""
        self._routes.pop(key, None)

    @property
    def unanswered(self) -> int:
        """Rows that were taken in and not answered yet."""
        return self._unanswered

    # --- requests -----------------------------------------------------------------------------------

    def submit(self, rows: Sequence[InferRow], *, tenant_id: str | None = None) -> Future[list[RowResult]]:
        """Take a request in; the future gives one result a row, in order, and never raises.

        With ``tenant_id``, only adapters of that tenant answer: a name may have been another tenant's.
        Cancelling the future drops the rows that are not being computed yet.
        """
        until = time.monotonic() + self._limits.request_timeout
        request = PendingRequest(rows, until, self._count_out, tenant_id)
        refusal = self._count_in(len(rows))
        if refusal is not None:
            for index in range(len(rows)):
                request.fail(index, refusal)
        elif rows:
            self._preparers.submit(self._prepare, request)
        return request.answer

    def refuse_new(self) -> None:
        """Refuse requests from now on; those under way go on."""
        self._draining = True

    def drain(self, timeout: float) -> bool:
        """Refuse new requests, answer those under way, stop; False when ``timeout`` seconds were too few."""
        until = time.monotonic() + timeout
        self.refuse_new()
        with self._idle:
            idle = self._idle.wait_for(lambda: self._unanswered == 0, timeout)
        self._preparers.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers.values():
            worker.stop(max(0.0, until - time.monotonic()))
        return idle

    def _count_in(self, rows: int) -> NotReady | None:
        """Count rows in, or say why they are refused (and count them all the same: they get an answer)."""
        with self._idle:
            waiting = self._unanswered
            self._unanswered += rows
            if self._draining:
                return NotReady("Draining", "This runtime is shutting down; try again.")
            if waiting + rows > self._limits.max_queue:
                return NotReady("Overloaded", f"{waiting} rows are waiting already; try again shortly.")
            return None

    def _count_out(self) -> None:
        with self._idle:
            self._unanswered -= 1
            if self._unanswered == 0:
                self._idle.notify_all()

    def _prepare(self, request: PendingRequest) -> None:
        """Route, tokenise and group the rows, and send each group on once its adapters are in memory."""
        for key, routes in self._find_routes(request).items():
            worker = self._workers[key]
            try:
                groups = self._group(request, worker, routes)
            except Exception:
                log.exception("a request could not be tokenised")
                error = Damaged("TokenizerFailed", "The text could not be tokenised; the log has the cause.")
                for index, _ in routes:
                    if not request.is_answered(index):
                        request.fail(index, error)
                continue
            for group in groups:
                Arrival(group, worker.batcher.put).bring(self._cache)

    def _find_routes(self, request: PendingRequest) -> dict[EngineKey, list[tuple[int, Route]]]:
        """Return the rows that have a route, by engine; the others are answered."""
        found: dict[EngineKey, list[tuple[int, Route]]] = {}
        for index, row in enumerate(request.rows):
            served = self._routes.get(row.adapter)
            if served is None or _is_of_another(served[1], request.tenant_id):
                request.fail(
                    index, NotReady("NotLoaded", f"{row.adapter} is not loaded here yet; try again shortly.")
                )
            else:
                found.setdefault(served[0], []).append((index, served[1]))
        return found

    def _group(
        self, request: PendingRequest, worker: EngineWorker, routes: list[tuple[int, Route]]
    ) -> list[Group]:
        base = worker.engine.base
        return group_rows(
            request,
            routes,
            base.tokenizer,
            max_length=min(self._limits.max_length, base.config.positions),
            most=worker.max_rows,
        )

    def _answer(self, row: BatchRow, result: RowResult) -> None:
        """Let a row's adapter go and answer it."""
        self._cache.release(row.route.adapter)
        row.request.finish(row.index, result)


def _is_of_another(route: Route, tenant_id: str | None) -> bool:
    """Say whether an adapter is known to be of another tenant than the one with ``tenant_id``."""
    return tenant_id is not None and bool(route.tenant_id) and route.tenant_id != tenant_id
