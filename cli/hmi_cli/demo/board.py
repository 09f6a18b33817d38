"""Shows how far each resource is: a bar a training run on a terminal, plain lines elsewhere."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from hmi_api.resources.conditions import Phase
from hmi_cli.render.resources import blocking, ready_status

LINE_EVERY_S = 10.0
STUCK = (Phase.FAILED, Phase.DEGRADED, Phase.RETRYING)
"""Phases that need their reason to be understood; of the others the phase says enough."""
Object = dict[str, Any]


class Board(Protocol):
    """Somewhere to show the state of all resources, again and again."""

    def show(self, items: list[Object]) -> None:
        """Show what changed."""


def title(item: Object) -> str:
    """Return ``Domain commons/hotel``."""
    metadata = item["metadata"]
    return f"{item['kind']} {metadata.get('namespace', 'default')}/{metadata['name']}"


def steps(item: Object) -> tuple[int, int]:
    """Return how many steps of how many are done; (0, 0) before a run has said."""
    found = re.search(r"(\d+)\s*/\s*(\d+)", (item.get("status") or {}).get("progress") or "")
    return (int(found[1]), int(found[2])) if found else (0, 0)


def state(item: Object) -> str:
    """Return one phrase for where a resource stands."""
    if ready_status(item) == "True":
        return "Ready"
    phase = str((item.get("status") or {}).get("phase") or "Pending")
    block = blocking(item)
    if phase in STUCK and block is not None and block["reason"] != phase:
        return f"{phase} ({block['reason']})"
    return phase


class BarBoard:
    """One bar a resource, for a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def show(self, items: list[Object]) -> None:
        """Move every bar to where its resource is."""
        for item in items:
            name = title(item)
            if name not in self._bars:
                self._bars[name] = self._progress.add_task(name, total=None, start=False, state="Pending")
            bar = self._bars[name]
            done, total = steps(item)
            if ready_status(item) == "True":
                self._progress.update(bar, total=total or 1, completed=total or 1, state="Ready")
                self._progress.stop_task(bar)
                continue
            if total:
                self._progress.start_task(bar)
            self._progress.update(bar, total=total or None, completed=done, state=state(item))


class LineBoard:
    """One line a change, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._said: dict[str, tuple[str, float]] = {}

    def show(self, items: list[Object]) -> None:
        """Print what has a new state, and every so often how far the others are."""
        now = time.monotonic()
        for item in items:
            name, current = title(item), state(item)
            before, when = self._said.get(name, ("", 0.0))
            done, total = steps(item)
            moving = bool(total) and now - when > LINE_EVERY_S and current != "Ready"
            if current == before and not moving:
                continue
            self._said[name] = (current, now)
            far = f" {done}/{total}" if total and current != "Ready" else ""
            self._console.print(f"[{now - self._started:6.1f}s] {name}: {current}{far}", markup=False)


@contextmanager
def open_board(console: Console) -> Iterator[Board]:
    """Open the board that suits the console."""
    if not console.is_terminal:
        yield LineBoard(console)
        return
    columns = (
        TextColumn("{task.description:<36}"),
        BarColumn(bar_width=28),
        TextColumn("{task.completed:>4.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield BarBoard(progress)
