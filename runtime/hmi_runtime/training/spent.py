"""How long a run has worked, over all the processes that worked on it: what its tenant is billed for."""

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from hmi_runtime.training.checkpoint import write_atomically

SPENT_FILE = "spent.json"

_LOG = logging.getLogger(__name__)


class TimeSpent:
    """Counts while the context lasts, on top of what the work folder says was spent before.

    The sum is kept there every ``every_seconds``, by a thread of its own: a process may be killed in a stage
    that says nothing for minutes. What a kill loses of it is that long at most. No artifact depends on it.
    """

    def __init__(
        self, folder: Path, *, every_seconds: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = folder / SPENT_FILE
        self._every_seconds = every_seconds
        self._clock = clock
        self._before = _read(self._path)
        self._started = clock()
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="time spent", daemon=True)

    @property
    def seconds(self) -> float:
        """Seconds spent on the run until now."""
        return self._before + self._clock() - self._started

    def __enter__(self) -> Self:
        self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._keeper.join()
        self._note()

    def _keep(self) -> None:
        while not self._over.wait(self._every_seconds):
            self._note()

    def _note(self) -> None:
        try:
            write_atomically(self._path, json.dumps({"seconds": self.seconds}).encode())
        except OSError as error:  # a full disk ends the run where it loses work, not here
            _LOG.warning("the time spent could not be kept: %s", error)


def _read(path: Path) -> float:
    if not path.is_file():
        return 0.0
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
