"""Progress of all resources until they are Ready: bars on a terminal, lines elsewhere."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from hmi_api.resources.conditions import Phase
from hmi_api.resources.kinds import KINDS
from hmi_cli.api import ResourceApi
from hmi_cli.errors import ApiError, CliError
from hmi_cli.render.resources import blocking, ready_status

LINE_EVERY_S = 10.0
STUCK = (Phase.FAILED, Phase.DEGRADED, Phase.RETRYING)
"""Phases that are shown with their reason."""
Object = dict[str, Any]
Show = Callable[[list[Object]], None]
"""Shows what has changed in the state of all resources."""


def title(item: Object) -> str:
    """Return ``Domain commons/hotel``."""
    metadata = item["metadata"]
    return f"{item['kind']} {metadata.get('namespace', 'default')}/{metadata['name']}"


def steps(item: Object) -> tuple[int, int]:
    """Return (steps done, steps in total); (0, 0) if the run has not reported any."""
    found = re.search(r"(\d+)\s*/\s*(\d+)", (item.get("status") or {}).get("progress") or "")
    return (int(found[1]), int(found[2])) if found else (0, 0)


def state(item: Object) -> str:
    """Return the state of a resource in one phrase."""
    if ready_status(item) == "True":
        return "Ready"
    phase = str((item.get("status") or {}).get("phase") or "Pending")
    block = blocking(item)
    if phase in STUCK and block is not None and block["reason"] != phase:
        return f"{phase} ({block['reason']})"
    return phase


class ProgressBars:
    """One bar for each resource, for a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def show(self, items: list[Object]) -> None:
        """Update every bar."""
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


class ProgressLines:
    """One line for each change, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._printed: dict[str, tuple[str, float]] = {}

    def show(self, items: list[Object]) -> None:
        """Print new states, and now and then the progress of the others."""
        now = time.monotonic()
        for item in items:
            name, current = title(item), state(item)
            before, when = self._printed.get(name, ("", 0.0))
            done, total = steps(item)
            moving = bool(total) and now - when > LINE_EVERY_S and current != "Ready"
            if current == before and not moving:
                continue
            self._printed[name] = (current, now)
            progress = f" {done}/{total}" if total and current != "Ready" else ""
            self._console.print(f"[{now - self._started:6.1f}s] {name}: {current}{progress}", markup=False)


@contextmanager
def open_progress(console: Console) -> Iterator[Show]:
    """Open bars on a terminal, else lines."""
    if not console.is_terminal:
        yield ProgressLines(console).show
        return
    columns = (
        TextColumn("{task.description:<36}"),
        BarColumn(bar_width=28),
        TextColumn("{task.completed:>4.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield ProgressBars(progress).show


POLL_S = 0.5


def is_settled(item: Object) -> bool:
    """Return whether a resource is Ready or has failed for good."""
    status = item.get("status") or {}
    observed = status.get("observedGeneration") == item["metadata"].get("generation", 1)
    return ready_status(item) == "True" or (
        observed and status.get("phase") in (Phase.FAILED, Phase.DEGRADED)
    )


def wait_until_settled(
    api: ResourceApi, show: Show, *, limit_s: float, alive: Callable[[], bool]
) -> list[Object]:
    """Show the resources until all have settled, the limit is over or the system has ended.

    A request that gets no answer is sent again: a machine that is overloaded or was suspended may miss one.
    """
    ends = time.monotonic() + limit_s
    while True:
        try:
            items = [item for kind in KINDS.values() for item in api.list(kind, None)]
        except CliError as error:
            if isinstance(error, ApiError) or time.monotonic() > ends or not alive():
                raise
            time.sleep(POLL_S)
            continue
        show(items)
        if all(is_settled(item) for item in items) or time.monotonic() > ends or not alive():
            return items
        time.sleep(POLL_S)
