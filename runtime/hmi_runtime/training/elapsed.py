"""The working time of a run over all its processes, which its tenant is billed for."""

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from hmi_api.durable_files import write_atomically

ELAPSED_FILE = "spent.json"

_LOG = logging.getLogger(__name__)


class ElapsedTime:
    """A context manager that measures time and adds it to the total in the work folder.

    A background thread writes the total every ``every_seconds``, so that a kill loses at most that much time.
    No artifact depends on it.
    """

    def __init__(
        self, folder: Path, *, every_seconds: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = folder / ELAPSED_FILE
        self._every_seconds = every_seconds
        self._clock = clock
        self._before: float = json.loads(self._path.read_bytes())["seconds"] if self._path.is_file() else 0.0
        self._started = clock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._save_periodically, name="elapsed time", daemon=True)

    @property
    def seconds(self) -> float:
        """Seconds of work on the run so far, of earlier processes too."""
        return self._before + self._clock() - self._started

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        self._save()

    def _save_periodically(self) -> None:
        while not self._stopped.wait(self._every_seconds):
            self._save()

    def _save(self) -> None:
        try:
            write_atomically(self._path, json.dumps({"seconds": self.seconds}).encode())
        except OSError as error:  # a full disk fails the run where it writes results, not here
            _LOG.warning("the elapsed time could not be saved: %s", error)
