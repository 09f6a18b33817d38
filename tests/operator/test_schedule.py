"""Cron schedules, compared with a reference that looks at every minute."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmi_api.resources.domain import CRON
from hmi_operator.planning.schedule import next_after

START = datetime(2026, 11, 21, 12, 30, 15, tzinfo=UTC)  # a Saturday


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("* * * * *", "2026-11-21 12:31"),
        ("*/20 * * * *", "2026-11-21 12:40"),
        ("30 12 * * *", "2026-11-22 12:30"),
        ("@daily", "2026-11-22 00:00"),
        ("@hourly", "2026-11-21 13:00"),
        ("@weekly", "2026-11-22 00:00"),
        ("@monthly", "2026-12-01 00:00"),
        ("@yearly", "2027-01-01 00:00"),
        ("0 3 * * MON-fri", "2026-11-23 03:00"),
        ("0 3 * * 7", "2026-11-22 03:00"),
        ("0 3 1 * mon", "2026-11-23 03:00"),  # neither begins with *: one of the two
        ("0 3 */2 * mon", "2026-11-23 03:00"),  # one does: both
        ("5,10/25 0-4/2 * Dec *", "2026-12-01 00:05"),
        ("0 0 29 2 *", "2028-02-29 00:00"),
    ],
)
def test_the_next_time(schedule: str, expected: str) -> None:
    assert re.fullmatch(CRON, schedule)
    found = next_after(schedule, START)
    assert found == datetime.fromisoformat(f"{expected}+00:00")


@pytest.mark.parametrize("schedule", ["0 0 31 2 *", "30-10 * * * *", "0 3 * * fri-mon"])
def test_a_schedule_that_names_no_time_is_accepted_and_has_none(schedule: str) -> None:
    assert re.fullmatch(CRON, schedule)
    assert next_after(schedule, START) is None


@settings(deadline=None, max_examples=100)
@given(st.from_regex(CRON, fullmatch=True))
def test_whatever_the_api_server_accepts_is_read_without_an_error(schedule: str) -> None:
    found = next_after(schedule, START)
    assert found is None or found > START


def test_a_time_in_another_zone_is_read_in_utc() -> None:
    there = START.astimezone(tz=datetime.fromisoformat("2026-01-01T00:00:00+05:30").tzinfo)
    assert next_after("@daily", there) == datetime(2026, 11, 22, tzinfo=UTC)


def _field(least: int, most: int) -> st.SearchStrategy[str]:
    number = st.integers(least, most)
    spans = st.lists(number, min_size=2, max_size=2, unique=True).map(lambda two: f"{min(two)}-{max(two)}")
    item = st.one_of(st.just("*"), number.map(str), spans)
    stepped = st.tuples(item, st.sampled_from(["", "/1", "/2", "/5", "/13"])).map("".join)
    return st.lists(stepped, min_size=1, max_size=2).map(",".join)


def _values(field: str, least: int, most: int) -> set[int]:
    found: set[int] = set()
    for item in field.split(","):
        span, _, step = item.partition("/")
        first, dash, last = span.partition("-")
        low = least if span == "*" else int(first)
        high = int(last) if dash else (most if span == "*" or step else low)
        found |= {number for number in range(low, high + 1) if (number - low) % int(step or 1) == 0}
    return found


def _reference(schedule: str, moment: datetime, limit: timedelta) -> datetime | None:
    fields = schedule.split()
    bounds = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)]
    minutes, hours, days, months, weekdays = (
        _values(field, *span) for field, span in zip(fields, bounds, strict=True)
    )
    either = not fields[2].startswith("*") and not fields[4].startswith("*")
    at = moment.replace(second=0, microsecond=0)
    while (at := at + timedelta(minutes=1)) <= moment + limit:
        of_month = at.day in days
        of_week = bool({at.isoweekday(), at.isoweekday() % 7} & weekdays)
        day = of_month or of_week if either else of_month and of_week
        if at.minute in minutes and at.hour in hours and at.month in months and day:
            return at
    return None


@settings(deadline=None, max_examples=60)
@given(
    fields=st.tuples(_field(0, 59), _field(0, 23), _field(1, 31), _field(1, 12), _field(0, 7)),
    minutes=st.integers(0, 366 * 24 * 60),
)
def test_the_next_time_equals_the_reference(fields: tuple[str, ...], minutes: int) -> None:
    schedule, moment, limit = " ".join(fields), START + timedelta(minutes=minutes), timedelta(days=3)
    assert re.fullmatch(CRON, schedule)
    found = next_after(schedule, moment)
    expected = _reference(schedule, moment, limit)
    assert found == expected if expected is not None else found is None or found > moment + limit
