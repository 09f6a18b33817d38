"""Byte-hours: loaded adapters are recorded once for each hour, however many processes record them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hmi_control_plane import sweeper
from hmi_control_plane.artifact_files import ArtifactFiles
from hmi_control_plane.catalog import runtimes
from hmi_control_plane.catalog.artifacts import ArtifactGarbageCollector
from hmi_control_plane.catalog.database import Database, utc_now
from hmi_control_plane.catalog.tables import Meter
from hmi_control_plane.catalog.tenants import find_billed_tenant
from hmi_control_plane.metering import records
from hmi_control_plane.metering.records import record_loaded_hour, start_of_hour, sum_usage
from hmi_control_plane.sweeper import Sweeper

_BYTES = 10  # of each adapter of the cluster
_WRITERS = 8


@pytest.fixture
def counted(database: Database) -> Callable[..., dict[str, int]]:
    """Records one hour; returns the byte-hours of ``tenant`` by adapter."""

    def count(hour: datetime, tenant: str = "acme") -> dict[str, int]:
        record_loaded_hour(database, hour, utc_now())
        with database.read() as session:
            used = sum_usage(session, find_billed_tenant(session, tenant).id, hour, hour + timedelta(hours=1))
        return {str(q.adapter): q.quantity for q in used if q.meter is Meter.RESIDENT_BYTE_HOURS}

    return count


@pytest.fixture
def served(cluster: Any) -> Any:
    """A cluster of two runtimes: both have acme's spam, and r1 has topic and globex's spam."""
    for runtime in ("r1", "r2"):
        cluster.runtime(runtime)
    cluster.domain()
    cluster.adapter("spam", replicas=2)
    cluster.adapter("topic")
    cluster.adapter("spam", tenant="globex")
    cluster.beat("r1", ready=["acme/spam@1", "acme/topic@1", "globex/spam@1"])
    cluster.beat("r2", ready=["acme/spam@1"])
    return cluster


def test_an_adapter_counts_at_each_runtime_that_has_it_ready(served: Any, counted: Any) -> None:
    served.adapter("waiting")
    served.adapter("broken")
    failed = {"adapter": "acme/broken", "version": 1, "reason": "DigestMismatch", "message": "Damaged."}
    served.beat("r1", failed=[failed])
    hour = utc_now()
    assert counted(hour) == {"spam": 2 * _BYTES, "topic": _BYTES}
    assert counted(hour, "globex") == {"spam": _BYTES}


def test_an_adapter_loaded_during_the_hour_counts_from_the_next(served: Any, counted: Any) -> None:
    hour = utc_now()
    assert set(counted(hour)) == {"spam", "topic"}
    served.adapter("late")
    served.beat("r2", ready=["acme/late@1", "acme/topic@1"])
    # As a restarted process or another replica would count the hour.
    assert counted(hour) == {"spam": 2 * _BYTES, "topic": _BYTES}
    assert counted(hour + timedelta(hours=1)) == {"spam": 2 * _BYTES, "topic": 2 * _BYTES, "late": _BYTES}


def test_unloaded_adapters_are_not_counted(served: Any, counted: Any, database: Database) -> None:
    served.beat("r1", gone=["acme/topic@1"])
    with database.write() as session:
        runtimes.mark_lost(session, silent_for=timedelta(0))
    served.beat("r1")
    assert counted(utc_now()) == {"spam": _BYTES}  # at r1, which has come back; r2 is lost


def test_an_hour_recorded_concurrently_counts_once(
    served: Any, counted: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "ADAPTERS_PER_TRANSACTION", 2)
    names = [f"task-{index}" for index in range(5)]
    for name in names:
        served.adapter(name)
    served.beat("r1", ready=[f"acme/{name}@1" for name in names])
    hour = utc_now()
    with ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(lambda _: record_loaded_hour(database, hour, utc_now()), range(_WRITERS)))
    expected = {"spam": 2 * _BYTES, "topic": _BYTES} | dict.fromkeys(names, _BYTES)
    assert counted(hour) == expected


def test_the_sweeper_records_each_hour_and_it_is_billed(
    served: Any, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sweep_at(minutes: int, by: Sweeper) -> None:
        monkeypatch.setattr(sweeper, "utc_now", lambda: begin + timedelta(minutes=minutes))
        by.sweep_usage()

    begin = start_of_hour(utc_now()) + timedelta(hours=2)
    price = {"meter": "resident_byte_hours", "unitPrice": "0.5", "effectiveFrom": begin.isoformat()}
    served.admin("PUT", "/prices", price)
    first, second = (_sweeper(database, tmp_path) for _ in range(2))
    for minutes, by in ((10, first), (20, second), (50, first), (60, second), (61, first), (300, second)):
        sweep_at(minutes, by)
    period = {"from": begin.isoformat(), "to": (begin + timedelta(days=1)).isoformat()}
    usage = served.admin("GET", "/usage", params=period | {"bucket": "hour", "tenant": "globex"})["items"]
    assert [line["quantity"] for line in usage] == [_BYTES] * 3  # the hours begun at 0, 60 and 300 minutes
    bill = served.admin("GET", "/bills/globex", params=period)
    assert [(line["meter"], line["unit"], line["amount"]) for line in bill["lines"]] == [
        ("resident_byte_hours", "byte-hour", "15.00")
    ]


def _sweeper(database: Database, folder: Path) -> Sweeper:
    return Sweeper(
        database,
        ArtifactGarbageCollector(database, str(folder)),
        ArtifactFiles(str(folder)),
        lost_after=timedelta(hours=1),
        forgotten_after=timedelta(hours=1),
        every_seconds=1,
        notify=lambda: None,
    )
