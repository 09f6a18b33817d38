"""Cron schedules: the next time that one names, in UTC.

``hmi_api.resources.domain.CRON`` defines the grammar, which the API server checks, too. As in cron, a
day must match both its field of the month and its field of the week; if neither field begins with ``*``, one
of the two suffices.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

_WORDS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTHS = {"jan": 1, "feb": 2, "mar": 3, "apr": 4, "may": 5, "jun": 6}
_MONTHS |= {"jul": 7, "aug": 8, "sep": 9, "oct": 10, "nov": 11, "dec": 12}
_DAYS = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}
_LONGEST_SEARCH = timedelta(days=8 * 366)
"""Between two 29ths of February there may be eight years."""


@dataclass(frozen=True)
class Schedule:
    """The minutes, hours, days and months of a cron schedule."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """0 to 6, from Sunday."""
    either_day: bool
    """Whether a day of the month or a day of the week suffices."""

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Return the schedule of a text that matches ``CRON``."""
        minutes, hours, days, months, weekdays = _WORDS.get(text, text).lower().split()
        return cls(
            minutes=frozenset(_values(minutes, 0, 59)),
            hours=frozenset(_values(hours, 0, 23)),
            days=frozenset(_values(days, 1, 31)),
            months=frozenset(_values(months, 1, 12, _MONTHS)),
            weekdays=frozenset(value % 7 for value in _values(weekdays, 0, 7, _DAYS)),
            either_day=not days.startswith("*") and not weekdays.startswith("*"),
        )

    def next_after(self, moment: datetime) -> datetime | None:
        """Return the first scheduled minute after ``moment``, in UTC; None for a day that no year has."""
        first = moment.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
        for day in _days(first.date()):
            if not self._matches(day):
                continue
            earliest = first.time() if day == first.date() else time()
            times = (time(hour, minute) for hour in sorted(self.hours) for minute in sorted(self.minutes))
            found = next((one for one in times if one >= earliest), None)
            if found is not None:
                return datetime.combine(day, found, UTC)
        return None

    def _matches(self, day: date) -> bool:
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        of_both = of_month or of_week if self.either_day else of_month and of_week
        return day.month in self.months and of_both


def _days(first: date) -> Iterator[date]:
    for passed in range(_LONGEST_SEARCH.days):
        yield first + timedelta(days=passed)


def _values(field: str, least: int, most: int, names: dict[str, int] | None = None) -> Iterator[int]:
    """Yield the values of a field: items with commas between, each ``*``, N or N-M, perhaps with /STEP."""
    for item in field.split(","):
        span, _, step = item.partition("/")
        first, _, last = span.partition("-")
        start = least if span == "*" else _number(first, names)
        end = _number(last, names) if last else start
        if span == "*" or (step and not last):
            end = most  # N/STEP goes on to the end
        yield from range(start, end + 1, int(step or 1))


def _number(text: str, names: dict[str, int] | None) -> int:
    return names[text] if names and text in names else int(text)
