"""Tables as kubectl prints them: upper-case headers, three spaces, no lines, never cut."""

from collections.abc import Sequence
from datetime import UTC, datetime

NONE = "<none>"
GAP = "   "


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text; every column is as wide as its widest cell."""
    lines = [list(headers), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    return "\n".join(
        GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def age(timestamp: str | None, now: datetime | None = None) -> str:
    """Return how long ago an RFC 3339 moment was, in kubectl's words: 41s, 5m, 3h, 12d."""
    if not timestamp:
        return NONE
    then = datetime.fromisoformat(timestamp.replace("Z", "+00:00"))
    seconds = max(0, int(((now or datetime.now(UTC)) - then).total_seconds()))
    if seconds < 120:
        return f"{seconds}s"
    if seconds < 3 * 3600:
        return f"{seconds // 60}m"
    if seconds < 2 * 86400:
        return f"{seconds // 3600}h"
    return f"{seconds // 86400}d"


def amount(value: int | float) -> str:
    """Return bytes in the unit a person would use."""
    size = float(value)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
