"""Cron schedules: the next time that one names, in UTC.

``hmi_api.resources.domain.CRON`` defines the grammar, which the API server checks, too; cronsim reads it. As
in Debian's cron, a day must match both its field of the month and its field of the week; if neither field
begins with ``*``, one of the two suffices.
"""

from datetime import UTC, datetime

from cronsim import CronSim, CronSimError

_WORDS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


def next_after(schedule: str, moment: datetime) -> datetime | None:
    """Return the first scheduled minute after ``moment``, in UTC.

    None if the schedule names no time: a range falls, or the months have no such day. ``CRON`` accepts both.
    """
    try:
        return next(CronSim(_WORDS.get(schedule, schedule), moment.astimezone(UTC)), None)
    except CronSimError:
        return None
