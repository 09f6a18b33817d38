"""Metrics of a runtime that lives through many refreshes."""

from types import SimpleNamespace

import numpy as np
from window_batches import batch as window_batch

from hmi_runtime.server import metrics as module
from hmi_runtime.server.metrics import RuntimeMetrics
from hmi_runtime.tables.lookup import LookupSource


def batch(version: int) -> SimpleNamespace:
    """Return what is counted of a batch with one text of two tokens."""
    shared = SimpleNamespace(
        lengths=[2],
        sources=np.array([LookupSource.OWN_TRIGRAM, LookupSource.COMPUTED], dtype=np.int8),
        domains=[SimpleNamespace(key="d/d", version=version)],
        texts=[1],
    )
    row = SimpleNamespace(text=SimpleNamespace(length=2))
    return SimpleNamespace(rows=[row], representations=shared, tokens=2, staging_seconds=0.1)


def test_lookups_are_counted_for_the_versions_that_were_looked_up_last(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(module, "_MOST_VERSIONS", 3)
    metrics = RuntimeMetrics()
    for version in (1, 2, 3, 1, 4):
        metrics.computed(batch(version), 0.1)
    once = {"own_trigram": 1, "computed": 1}
    assert metrics.sources() == {
        "d/d@3": once,
        "d/d@1": dict.fromkeys(once, 2),
        "d/d@4": once,
    }


def test_domains_that_a_report_has_no_room_for_are_in_the_metrics() -> None:
    metrics = RuntimeMetrics()
    metrics.windows._most_domains = 1
    metrics.windows.add(window_batch([("t1", "a/a", [1, 2]), ("t1", "a/b", [1, 2])]))
    metrics.windows.take()
    assert metrics.registry.get_sample_value("hmi_window_domains_dropped_total") == 1
    assert metrics.registry.get_sample_value("hmi_windows_dropped_total") == 2
