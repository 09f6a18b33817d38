"""The flusher moves events to the catalog exactly once, despite crashes and outages."""

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import UsageEventRow
from hmi_control_plane.metering.events import UsageEvent, to_cloud_event
from hmi_control_plane.metering.flusher import Flusher, MeteringMetrics
from hmi_control_plane.metering.segments import SegmentFolder, encode_line

MakeEvent = Callable[..., UsageEvent]


def opened(folder: Path) -> SegmentFolder:
    """Return an opened folder of segments."""
    segments = SegmentFolder(folder)
    segments.open()
    return segments


def flusher_of(segments: SegmentFolder, database: Database, interval: float = 0.001) -> Flusher:
    """Return a flusher with its own metrics."""
    return Flusher(segments, database, MeteringMetrics(CollectorRegistry()), interval=interval)


def append(segments: SegmentFolder, *events: UsageEvent) -> None:
    """Make events durable."""
    segments.append([encode_line(to_cloud_event(event)) for event in events])


def test_events_are_moved_from_the_spool_to_the_catalog(
    database: Database, spool_folder: Path, make_event: MakeEvent, ledger_ids: Callable[[], list[str]]
) -> None:
    segments = opened(spool_folder)
    append(segments, make_event(1), make_event(2, adapter=None, version=7))
    assert flusher_of(segments, database).flush() == 2
    assert ledger_ids() == ["1", "2"]
    assert list(spool_folder.glob("*.events")) == []
    with database.read() as session:
        row = session.scalars(select(UsageEventRow).where(UsageEventRow.event_id == "1")).one()
        assert (row.source, row.tenant, row.adapter, row.meter, row.quantity) == (
            "/test",
            "acme",
            "spam",
            "rows",
            1,
        )
        assert row.time == make_event(1).time
    segments.close()


def test_the_same_event_counts_once(
    database: Database, spool_folder: Path, make_event: MakeEvent, ledger_ids: Callable[[], list[str]]
) -> None:
    segments = opened(spool_folder)
    flusher = flusher_of(segments, database)
    for _ in range(2):
        append(segments, make_event(1), make_event(1), make_event(1, source="/other"))
        flusher.flush()
    assert ledger_ids() == ["1", "1"]  # of two sources
    segments.close()


def test_segments_of_a_killed_process_are_flushed(
    database: Database, spool_folder: Path, make_event: MakeEvent, ledger_ids: Callable[[], list[str]]
) -> None:
    first = opened(spool_folder)
    append(first, make_event(1))
    first.close()
    second = opened(spool_folder)
    append(second, make_event(2))
    flusher_of(second, database).flush()
    assert ledger_ids() == ["1", "2"]
    second.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(1, 5)),
            st.tuples(st.just("torn write"), st.integers(0, 400)),
            st.tuples(st.just("flush"), st.just(0)),
            st.tuples(st.just("die before deleting"), st.just(0)),
        ),
        max_size=8,
    )
)
def test_no_crash_loses_an_acknowledged_event_or_counts_one_twice(
    sqlite_template: Path, make_event: MakeEvent, steps: list[tuple[str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, spool = Path(name), Path(name) / "usage"
        shutil.copyfile(sqlite_template, folder / "catalog.db")
        database = Database(f"sqlite:///{folder / 'catalog.db'}")
        written = 0
        acknowledged: set[str] = set()
        for kind, size in steps:
            segments = opened(spool)
            if kind == "write":
                events = [make_event(written + place) for place in range(size)]
                append(segments, *events)
                acknowledged |= {event.id for event in events}
                written += size
            elif kind == "torn write":
                append(segments, make_event(written))
                written += 1
                _cut_last(segments, size)
            elif kind == "flush":
                flusher_of(segments, database).flush()
            else:
                kept = {path: path.read_bytes() for path in segments.seal()}
                flusher_of(segments, database).flush()
                for path, content in kept.items():
                    path.write_bytes(content)
            segments.close()  # as the kernel does for a process that dies
        for _ in range(2):
            segments = opened(spool)
            flusher_of(segments, database).flush()
            segments.close()
        with database.read() as session:
            counted = list(session.scalars(select(UsageEventRow.event_id)))
        database.close()
    assert len(counted) == len(set(counted))
    assert acknowledged <= set(counted) <= {str(number) for number in range(written)}


def _cut_last(segments: SegmentFolder, size: int) -> None:
    """Leave only ``size`` bytes of the newest segment's only write, as a crash before its sync would."""
    newest = segments.seal()[-1]
    newest.write_bytes(newest.read_bytes()[:size])


def test_while_the_database_is_down_events_wait(
    sqlite_url: str,
    spool_folder: Path,
    tmp_path: Path,
    make_event: MakeEvent,
) -> None:
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    away = path.rename(tmp_path / "away.db")
    path.mkdir()  # SQLite cannot open a folder
    database = Database(sqlite_url)
    segments = opened(spool_folder)
    registry = CollectorRegistry()
    flusher = Flusher(segments, database, MeteringMetrics(registry), interval=0.001)

    def counted() -> int:
        with database.read() as session:
            return len(session.scalars(select(UsageEventRow.event_id)).all())

    def bring_back() -> None:
        path.rmdir()
        away.rename(path)

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 -- a metric has no event to wait for
                await asyncio.sleep(0.005)

    async def run() -> None:
        append(segments, make_event(1))
        running = asyncio.create_task(flusher.run())
        await until(lambda: (registry.get_sample_value("hmi_usage_flush_failures_total") or 0) >= 2)
        assert (registry.get_sample_value("hmi_usage_spool_lag_seconds") or 0) > 0
        assert (registry.get_sample_value("hmi_usage_spool_bytes") or 0) > 0
        append(segments, make_event(2))
        bring_back()
        await until(lambda: registry.get_sample_value("hmi_usage_events_flushed_total") == 2)
        flusher.stop()
        await running

    asyncio.run(run())
    assert counted() == 2
    assert registry.get_sample_value("hmi_usage_spool_lag_seconds") == 0
    segments.close()
    database.close()


def test_a_failed_flush_keeps_the_segment(spool_folder: Path, tmp_path: Path, make_event: MakeEvent) -> None:
    database = Database(f"sqlite:///{tmp_path / 'no-tables.db'}")
    segments = opened(spool_folder)
    append(segments, make_event(1))
    with pytest.raises(OperationalError):
        flusher_of(segments, database).flush()
    assert len(list(spool_folder.glob("*.events"))) == 1
    segments.close()
    database.close()


def test_a_damaged_segment_is_kept_for_inspection(
    database: Database, spool_folder: Path, make_event: MakeEvent, ledger_ids: Callable[[], list[str]]
) -> None:
    segments = opened(spool_folder)
    append(segments, make_event(1), make_event(2))
    [segment] = segments.seal()
    segment.write_bytes(segment.read_bytes().replace(b'"quantity":1', b'"quantity":9'))
    flusher_of(segments, database).flush()
    assert ledger_ids() == ["2"]
    assert {path.suffix for path in spool_folder.glob("0*")} == {".damaged", ".open"}
    segments.close()
