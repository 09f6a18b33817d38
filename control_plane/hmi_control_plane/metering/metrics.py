"""Metrics of the way from the spool to the ledger."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class MeteringMetrics:
    """Counters and gauges of one spool and its flusher, on the given registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.spool_lag_seconds = Gauge(
            "hmi_usage_spool_lag_seconds",
            "How long usage events have been waiting for the catalog; 0 while the last flush succeeded.",
            registry=registry,
        )
        self.spool_bytes = Gauge(
            "hmi_usage_spool_bytes", "Bytes of usage events on the local disk.", registry=registry
        )
        self.spool_full = Gauge(
            "hmi_usage_spool_full",
            "1 while usage events cannot be recorded and requests are refused for it, else 0.",
            registry=registry,
        )
        self.events_flushed = Counter(
            "hmi_usage_events_flushed_total", "Usage events delivered to the catalog.", registry=registry
        )
        self.flush_failures = Counter(
            "hmi_usage_flush_failures_total", "Flushes the catalog did not take.", registry=registry
        )
        self.damaged_lines = Counter(
            "hmi_usage_damaged_lines_total", "Spooled lines that could not be read back.", registry=registry
        )
