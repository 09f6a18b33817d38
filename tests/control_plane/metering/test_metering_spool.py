"""The spool: acknowledged events are read back, whatever happens to the last write."""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmi_control_plane.catalog.tables import Meter
from hmi_control_plane.metering.events import UsageEvent, from_cloud_event, request_events, to_cloud_event
from hmi_control_plane.metering.segments import (
    SegmentFolder,
    SpoolFullError,
    SpoolInUseError,
    encode_line,
    read_segment,
)
from hmi_control_plane.metering.spool import Spool

MakeEvent = Callable[..., UsageEvent]


def line(event: UsageEvent) -> bytes:
    """Return the stored form of an event."""
    return encode_line(to_cloud_event(event))


def opened(folder: Path, **options: int) -> SegmentFolder:
    """Return an opened folder of segments."""
    segments = SegmentFolder(folder, **options)
    segments.open()
    return segments


def test_an_event_is_unchanged_after_conversion_to_cloud_events_and_back(make_event: MakeEvent) -> None:
    for event in (
        make_event(1),
        make_event(2, adapter=None, version=3, request_id="r", tenant_id="tenant_1"),
        make_event(3, tenant='tab\tbreak\nquote"'),
    ):
        text = to_cloud_event(event)
        assert "\n" not in text
        assert "\t" not in text
        assert from_cloud_event(text) == event


def test_events_of_a_request_have_distinct_ids(make_event: MakeEvent) -> None:
    parts = [
        request_events(
            *("r1", make_event(1).time, "acme", name),
            tenant_id="tenant_1",
            ordinal=place,
            rows=2,
            prompt_tokens=9,
        )
        for place, name in enumerate(("spam", "topic"))
    ]
    events = [event for part in parts for event in part]
    assert len({event.id for event in events}) == 6
    assert {event.meter: event.quantity for event in parts[0]} == {
        Meter.REQUESTS: 1,
        Meter.ROWS: 2,
        Meter.PROMPT_TOKENS: 9,
    }


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    cut=st.floats(0, 1),
    noise=st.binary(max_size=40),
)
def test_a_crash_at_any_byte_of_the_last_write_loses_only_that_write(
    make_event: MakeEvent, sizes: list[int], cut: float, noise: bytes
) -> None:
    numbers = iter(range(100))
    writes = [b"".join(line(make_event(next(numbers))) for _ in range(size)) for size in sizes]
    kept = writes[-1][: int(cut * len(writes[-1]))]
    with tempfile.TemporaryDirectory() as folder:
        segment = Path(folder) / "000000000001.events"
        segment.write_bytes(b"".join(writes[:-1]) + kept + noise)
        contents = read_segment(segment)
    found = [event.quantity for event in contents.events]
    assert found == list(range(len(found)))
    assert len(found) >= sum(sizes[:-1])
    assert contents.damaged == 0


def test_damage_before_valid_lines_differs_from_an_incomplete_end(
    spool_folder: Path, make_event: MakeEvent
) -> None:
    spool_folder.mkdir()
    good, bad = line(make_event(1)), line(make_event(2)).replace(b"acme", b"evil")
    segment = spool_folder / "1.events"
    segment.write_bytes(good + bad + line(make_event(3)) + bad + b"torn")
    contents = read_segment(segment)
    assert [event.quantity for event in contents.events] == [1, 3]
    assert contents.damaged == 1
    assert contents.torn == len(bad) + len(b"torn")


def test_a_failed_write_is_not_read_back(
    spool_folder: Path, make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = opened(spool_folder)
    segments.append([line(make_event(1))])

    def half(descriptor: int, data: memoryview) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return real_write(descriptor, data[:20])

    real_write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space"):
            segments.append([line(make_event(2))])
    segments.append([line(make_event(3))])
    read = [event.quantity for path in segments.seal() for event in read_segment(path).events]
    assert read == [1, 3]
    segments.close()


def test_segments_are_sealed_at_their_size(spool_folder: Path, make_event: MakeEvent) -> None:
    segments = opened(spool_folder, segment_bytes=1)
    for number in range(3):
        segments.append([line(make_event(number))])
    assert len(segments.seal()) == 3
    segments.close()


def test_unused_preallocated_space_is_not_damage(spool_folder: Path, make_event: MakeEvent) -> None:
    segments = opened(spool_folder)
    for number in range(3):
        segments.append([line(make_event(number))])
    [left] = spool_folder.glob("*.open")  # as a crash leaves it
    contents = read_segment(left)
    assert [event.quantity for event in contents.events] == [0, 1, 2]
    assert (contents.torn, contents.damaged) == (0, 0)
    written = 3 * len(line(make_event(0)))
    assert left.stat().st_size > written
    assert segments.unflushed_bytes() == written
    [sealed] = segments.seal()
    assert sealed.stat().st_size == written
    segments.close()


def test_an_append_beyond_the_preallocated_space_is_read_back(
    spool_folder: Path, make_event: MakeEvent
) -> None:
    segments = opened(spool_folder)
    events = [make_event(number) for number in range(2_000)]
    segments.append([line(event) for event in events])
    [sealed] = segments.seal()
    assert sealed.stat().st_size > 256 * 1024
    assert read_segment(sealed).events == events
    segments.close()


def test_a_full_disk_does_not_prevent_flushing_sealed_segments(
    spool_folder: Path, make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = opened(spool_folder)
    segments.append([line(make_event(1))])

    def full(*_arguments: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", full)
        [sealed] = segments.seal()
    segments.append([line(make_event(2))])
    assert segments.seal()[0] == sealed
    assert [event.quantity for path in segments.seal() for event in read_segment(path).events] == [1, 2]
    segments.close()


def test_a_folder_stores_no_more_than_its_limit(spool_folder: Path, make_event: MakeEvent) -> None:
    one = line(make_event(1))
    segments = opened(spool_folder, limit_bytes=len(one) * 5)
    for _ in range(5):
        segments.append([one])
    assert not segments.is_full
    with pytest.raises(SpoolFullError):
        segments.append([one])
    assert segments.is_full
    sealed = segments.seal()
    segments.make_room()
    assert segments.is_full
    for segment in sealed:
        segments.remove(segment)
    segments.make_room()
    assert not segments.is_full
    segments.append([one])
    segments.close()


def test_events_of_an_earlier_process_count_towards_the_limit(
    spool_folder: Path, make_event: MakeEvent
) -> None:
    one = line(make_event(1))
    first = opened(spool_folder)
    first.append([one] * 5)
    first.close()
    second = opened(spool_folder, limit_bytes=len(one) * 5)
    with pytest.raises(SpoolFullError):
        second.append([one])
    second.close()


def test_a_spool_is_usable_again_only_after_a_write_succeeds(
    spool_folder: Path, make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = opened(spool_folder)

    def full(*_arguments: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            segments.append([line(make_event(1))])
        segments.make_room()
        assert segments.is_full
    segments.make_room()
    assert not segments.is_full
    segments.close()


def test_an_append_creates_no_file_and_an_unused_spool_leaves_none(
    spool_folder: Path, make_event: MakeEvent
) -> None:
    segments = opened(spool_folder)
    for number in range(3):
        before = set(spool_folder.iterdir())
        segments.append([line(make_event(number))])
        assert set(spool_folder.iterdir()) == before
        for sealed in segments.seal():
            segments.remove(sealed)
    segments.close()
    assert [path.name for path in spool_folder.iterdir()] == ["lock"]


def test_only_one_process_can_open_the_folder(spool_folder: Path) -> None:
    first = opened(spool_folder)
    with pytest.raises(SpoolInUseError):
        opened(spool_folder)
    first.close()
    opened(spool_folder).close()


def test_waiting_appends_share_one_sync(
    spool_folder: Path, make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    real_sync = os.fdatasync

    def counted(descriptor: int) -> None:
        syncs.append(descriptor)
        real_sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", counted)

    async def many() -> None:
        spool = Spool(spool_folder)
        spool.open()
        await asyncio.gather(*(spool.append([make_event(number)]) for number in range(200)))
        await spool.close()

    asyncio.run(many())
    [segment] = spool_folder.glob("*.events")
    assert {event.quantity for event in read_segment(segment).events} == set(range(200))
    assert len(syncs) <= 2


def test_a_cancelled_request_does_not_disturb_the_others(spool_folder: Path, make_event: MakeEvent) -> None:
    async def run() -> None:
        spool = Spool(spool_folder)
        spool.open()
        first, second = (asyncio.create_task(spool.append([make_event(number)])) for number in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await second
        await spool.close()

    asyncio.run(run())
    [segment] = spool_folder.glob("*.events")
    assert len(read_segment(segment).events) == 2


_WRITER = """
import sys
from pathlib import Path
from hmi_control_plane.metering.segments import SegmentFolder, encode_line, read_segment
from hmi_control_plane.metering.events import from_cloud_event, to_cloud_event
segments = SegmentFolder(Path(sys.argv[1]), segment_bytes=2_000)
segments.open()
template = sys.stdin.readline().rstrip("\\n")
for number in range(1_000_000):
    segments.append([encode_line(template.replace('"id":"0"', f'"id":"{number}"'))])
    print(number, flush=True)
"""


def test_a_process_killed_at_any_moment_loses_nothing_it_acknowledged(
    spool_folder: Path, make_event: MakeEvent
) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, spool_folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    writer.stdin.write(to_cloud_event(make_event(0)) + "\n")
    writer.stdin.flush()
    acknowledged = [int(writer.stdout.readline()) for _ in range(50)]
    writer.kill()
    acknowledged += [
        int(rest) for rest in writer.communicate()[0].splitlines(keepends=True) if rest.endswith("\n")
    ]
    segments = opened(spool_folder)
    found = [int(event.id) for path in segments.seal() for event in read_segment(path).events]
    assert found[: len(acknowledged)] == acknowledged
    assert len(found) - len(acknowledged) <= 1
    segments.close()
