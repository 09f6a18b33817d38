"""Metrics of inference as the gateway sees it."""

from prometheus_client import CollectorRegistry, Counter


class GatewayMetrics:
    """Counters of what was asked and answered, on the given registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.tokens = Counter(
            "hmi_tokens_total", "Tokens of answered rows.", ["direction"], registry=registry
        )
        self.rows = Counter("hmi_rows_total", "Rows by outcome.", ["result"], registry=registry)
