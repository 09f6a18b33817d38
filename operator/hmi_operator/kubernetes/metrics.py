"""Prometheus metrics of the operator, on a registry of their own; their labels are few and bounded."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from hmi_operator.ports import ResourceRef

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class OperatorMetrics:
    """What the operator tells of itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "hmi_reconcile_seconds",
            "Seconds that one reconciliation took.",
            ["kind"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._failures = Counter(
            "hmi_reconcile_failures_total", "Reconciliations that failed.", ["kind"], registry=self.registry
        )
        self._requests = Counter(
            "hmi_kube_requests_total",
            "Requests to the API server, watches not counted; code 0: no answer.",
            ["method", "kind", "code"],
            registry=self.registry,
        )
        self._leader = Gauge(
            "hmi_operator_leader", "1 where this replica does the work.", registry=self.registry
        )
        self._queue = Gauge(
            "hmi_reconcile_queue_length", "Resources that wait to be reconciled.", registry=self.registry
        )
        self._resources = Gauge(
            "hmi_operator_resources", "Domains and TaskAdapters that are known.", registry=self.registry
        )

    def show(
        self, *, leader: Callable[[], bool], queue: Callable[[], int], resources: Callable[[], int]
    ) -> None:
        """Say where the gauges are read from, at every scrape."""
        self._leader.set_function(leader)
        self._queue.set_function(queue)
        self._resources.set_function(resources)

    def reconciled(self, ref: ResourceRef, seconds: float, went_well: bool) -> None:
        """Count a reconciliation."""
        self._seconds.labels(ref.kind).observe(seconds)
        if not went_well:
            self._failures.labels(ref.kind).inc()

    def requested(self, method: str, kind: str, code: int) -> None:
        """Count a request to the API server."""
        self._requests.labels(method, kind, code).inc()
