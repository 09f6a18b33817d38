"""Reports of a run: to the control plane, or as JSON lines on standard output."""

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from pydantic import BaseModel

from hmi_api.errors import HmiError, NotReady
from hmi_api.internal.runs import RunFailure, RunProgress, RunResult
from hmi_api.internal.trainer_client import TrainerClient

_LOG = logging.getLogger(__name__)

_PROGRESS_SECONDS, _LONGEST_PROGRESS_SECONDS = 1.0, 30.0
_LOG_SECONDS = 10.0


class Reporter(Protocol):
    """Reports a run's progress, result or failure."""

    def progress(self, progress: RunProgress) -> None:
        """Report progress; a report may be dropped."""

    def complete(self, result: RunResult) -> None:
        """Report the result; return once it is accepted. Raises ``InvalidInput`` if it is refused."""

    def fail(self, failure: RunFailure) -> None:
        """Report that there is no result, and why; return once it is accepted."""


class LineReporter:
    """One JSON object a line: {"event": "progress" | "complete" | "fail", ...}."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout

    def progress(self, progress: RunProgress) -> None:
        self._write("progress", progress)

    def complete(self, result: RunResult) -> None:
        self._write("complete", result)

    def fail(self, failure: RunFailure) -> None:
        self._write("fail", failure)

    def _write(self, event: str, body: BaseModel) -> None:
        line = {"event": event, **body.model_dump(mode="json", by_alias=True, exclude_none=True)}
        print(json.dumps(line), file=self._stream, flush=True)


class ControlPlaneReporter:
    """Reports to the control plane.

    Progress is reported at most once a second, and less often while the control plane does not answer.
    Results and failures are repeated until they are accepted, as ``TrainerClient`` does.
    """

    def __init__(self, client: TrainerClient, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._next_progress = clock()
        self._progress_pause = _PROGRESS_SECONDS
        self._logged_stage = ""
        self._next_log = clock()

    def progress(self, progress: RunProgress) -> None:
        self._log(progress)
        if self._clock() < self._next_progress:
            return
        pause = _PROGRESS_SECONDS
        try:
            self._client.report_progress(progress)
        except NotReady as error:
            _LOG.warning("progress was not reported: %s", error)
            pause = min(self._progress_pause * 2, _LONGEST_PROGRESS_SECONDS)
        except HmiError as error:
            _LOG.warning("progress was refused: %s", error)
        self._progress_pause = pause
        self._next_progress = self._clock() + pause

    def complete(self, result: RunResult) -> None:
        self._client.complete_run(result)

    def fail(self, failure: RunFailure) -> None:
        self._client.fail_run(failure)

    def _log(self, progress: RunProgress) -> None:
        """Log the start of each stage, and its progress every ten seconds."""
        if progress.stage == self._logged_stage and self._clock() < self._next_log:
            return
        self._logged_stage, self._next_log = progress.stage, self._clock() + _LOG_SECONDS
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in progress.metrics.items())
        _LOG.info("%s %d/%d%s", progress.stage, progress.step, progress.total, metrics and f" ({metrics})")
