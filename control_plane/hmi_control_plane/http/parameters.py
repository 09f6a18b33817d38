"""Types of path and query parameters, with their validation."""

import re
from calendar import monthrange
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Path
from pydantic import BeforeValidator, StringConstraints, WithJsonSchema

from hmi_api.internal.runs import RUN_ID
from hmi_api.resources.common import DNS_LABEL

Name = Annotated[str, Path(pattern=DNS_LABEL, max_length=63, description="A DNS label.")]
TenantNameOrId = Annotated[
    str, StringConstraints(pattern=rf"{DNS_LABEL}|^tenant_[0-9a-f]{{16}}$", max_length=63)
]
"""A tenant's name, or its id: several tenants may have had the same name one after another."""
RuntimeId = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9]([-A-Za-z0-9._]{0,126}[A-Za-z0-9])?$", description="Id of a runtime.")
]
RunId = Annotated[str, Path(pattern=f"^{RUN_ID}$", description="Id of a training run.")]
ChoiceId = Annotated[int, Path(ge=1, le=2**63 - 1, description="Id of a precision choice.")]
_FIRST = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = datetime(9000, 1, 1, tzinfo=UTC)
"""Years that every database can store, whatever the offset."""
_TIMESTAMP = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"([Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[-+ ][0-9]{2}:[0-5][0-9]))?"
)
_EXPECTED = (
    "give an RFC 3339 timestamp with a zone, such as 2026-11-01T00:00:00Z or 2026-11-01T02:00:00+02:00, "
    "or a date, such as 2026-11-01, which means its midnight in UTC"
)


def parse_timestamp(value: object) -> datetime:
    """Return the moment in UTC; see ``parse_local_timestamp``."""
    return parse_local_timestamp(value).astimezone(UTC)


def parse_local_timestamp(value: object) -> datetime:
    """Return the time at its own offset from UTC. Digits after the microseconds are dropped.

    A date is its midnight in UTC.

    Raises ValueError for anything else, numbers included: 20261101 may be a date or seconds since 1970.
    """
    if not isinstance(value, str) or not _TIMESTAMP.fullmatch(value):
        raise ValueError(_EXPECTED)
    # A space before the offset is a "+" of a query string that was not sent as %2B.
    date, time = value[:10], value[11:].upper().replace(" ", "+")
    try:
        moment = datetime.fromisoformat(f"{date}T{time or '00:00:00Z'}")
    except ValueError as error:
        raise ValueError(f"there is no such moment ({error}); {_EXPECTED}") from error
    if not _FIRST <= moment < _LAST:
        raise ValueError("a moment must lie between the years 1970 and 9000")
    return moment


_SCHEMA = WithJsonSchema(
    {
        "type": "string",
        "anyOf": [{"format": "date-time"}, {"format": "date"}],
        "description": "RFC 3339 with a zone, or a date, which means its midnight in UTC.",
    },
    mode="validation",
)
Timestamp = Annotated[datetime, BeforeValidator(parse_timestamp), _SCHEMA]
"""A time in a request, converted to UTC."""
LocalTimestamp = Annotated[datetime, BeforeValidator(parse_local_timestamp), _SCHEMA]
"""A time in a request at its own offset: a month starts at another time in each timezone."""


def start_of_month(moment: datetime) -> datetime:
    """Return the first moment of the month."""
    return moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def month_after(moment: datetime) -> datetime:
    """Return the same day and time of the next month, or that month's last day where it has no such day.

    Days are those of the time's own offset.
    """
    next_month = moment.replace(day=1) + timedelta(days=31)
    _, days = monthrange(next_month.year, next_month.month)
    return next_month.replace(day=min(moment.day, days))
