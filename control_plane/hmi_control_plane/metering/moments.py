"""Moments that users may name: with a zone, and in years that every database and every offset can hold."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime

_FIRST = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = datetime(9000, 1, 1, tzinfo=UTC)


def _within_range(moment: datetime) -> datetime:
    if not _FIRST <= moment < _LAST:
        raise ValueError("a moment must lie between the years 1970 and 9000")
    return moment.astimezone(UTC)


Moment = Annotated[AwareDatetime, AfterValidator(_within_range)]
"""An aware moment, brought to UTC."""
