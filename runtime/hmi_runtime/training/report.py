"""Telling how a run goes: to the control plane, or as JSON lines on standard output."""

import json
import logging
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol, TextIO

import httpx
from pydantic import BaseModel, ValidationError

from hmi_api.errors import ErrorBody, ErrorDetail, InvalidInput, NotReady
from hmi_api.internal.runs import RunFailure, RunProgress, RunResult, RunView

_LOG = logging.getLogger(__name__)

_PROGRESS_SECONDS = 1.0
_NOTE_SECONDS = 10.0
_PROGRESS_TIMEOUT = 2.0
_TIMEOUT = 10.0
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
_JSON = {"Content-Type": "application/json"}
_UNFIT = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
}
"""Answers that say that the body is wrong: the run fails with their reason."""
_PASSING = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY}
_CONCURRENT_WRITE = "ConcurrentWrite"


class Reporter(Protocol):
    """Where a run's progress and its end go."""

    def progress(self, progress: RunProgress) -> None:
        """Say how far the run is; may be dropped."""

    def complete(self, result: RunResult) -> None:
        """Hand in the result; returns once it is accepted. Raises ``InvalidInput`` when it does not fit."""

    def fail(self, failure: RunFailure) -> None:
        """Say why there is no result; returns once it is accepted."""


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


class RunRefused(Exception):
    """The control plane answered, and will not change its mind: the run is unknown, over or not ours."""


class ControlPlaneReporter:
    """Reports to the control plane's internal API.

    Progress goes out at most once a second, and a control plane that is away only makes it rarer. Results
    and failures are posted again, ever more slowly, until they are accepted or ``patience`` seconds are over.
    """

    def __init__(
        self,
        client: httpx.Client,
        run_id: str,
        *,
        patience: float = 3600.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``client`` has the control plane's address and the internal token."""
        self._client = client
        self._path = f"/internal/v1/runs/{run_id}"
        self._patience = patience
        self._sleep = sleep
        self._clock = clock
        self._next_progress = clock()
        self._progress_pause = _PROGRESS_SECONDS
        self._noted_stage = ""
        self._next_note = clock()

    def run(self) -> RunView:
        """Fetch the run; raises ``RunRefused``, or ``NotReady`` ControlPlaneAway after the patience."""
        answer = self._until_answered(lambda: self._client.get(self._path, timeout=_TIMEOUT))
        return RunView.model_validate_json(answer.content)

    def progress(self, progress: RunProgress) -> None:
        self._note(progress)
        if self._clock() < self._next_progress:
            return
        try:
            answer = self._client.post(
                f"{self._path}/progress", content=_body(progress), headers=_JSON, timeout=_PROGRESS_TIMEOUT
            )
            away = answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
        except httpx.TransportError as error:
            _LOG.warning("progress was not reported: %s", error)
            away = True
        self._progress_pause = min(self._progress_pause * 2, _LONGEST_WAIT) if away else _PROGRESS_SECONDS
        self._next_progress = self._clock() + self._progress_pause

    def complete(self, result: RunResult) -> None:
        self._post("complete", result)

    def fail(self, failure: RunFailure) -> None:
        self._post("fail", failure)

    def _note(self, progress: RunProgress) -> None:
        """Log each stage as it begins, and now and then how far it is: what a tenant reads of its Job."""
        if progress.stage == self._noted_stage and self._clock() < self._next_note:
            return
        self._noted_stage, self._next_note = progress.stage, self._clock() + _NOTE_SECONDS
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in progress.metrics.items())
        _LOG.info("%s %d/%d%s", progress.stage, progress.step, progress.total, metrics and f" ({metrics})")

    def _post(self, action: str, body: BaseModel) -> None:
        content = _body(body)
        self._until_answered(
            lambda: self._client.post(
                f"{self._path}/{action}", content=content, headers=_JSON, timeout=_TIMEOUT
            )
        )

    def _until_answered(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        give_up, wait = self._clock() + self._patience, _FIRST_WAIT
        while True:
            try:
                answer = send()
                if answer.is_success:
                    return answer
                trouble = f"it answered {answer.status_code}"
                if answer.status_code in _UNFIT:
                    raise _unfit(answer)
                if not _may_change(answer):
                    raise RunRefused(f"The control plane refused {answer.url}: {trouble}.{_said(answer)}")
            except httpx.TransportError as error:
                trouble = f"{type(error).__name__}: {error}"
            if self._clock() + wait > give_up:
                raise NotReady(
                    "ControlPlaneAway",
                    f"The control plane could not be reached ({trouble}); "
                    "start the run again when it is back.",
                )
            _LOG.warning("control plane not reached (%s); trying again in %.1f s", trouble, wait)
            self._sleep(wait)
            wait = min(wait * 2, _LONGEST_WAIT)


def _body(model: BaseModel) -> str:
    return model.model_dump_json(by_alias=True, exclude_none=True)


def _unfit(answer: httpx.Response) -> InvalidInput:
    detail = _detail(answer)
    if detail is None:
        return InvalidInput("ResultRefused", f"The control plane refused {answer.url} without a reason.")
    return InvalidInput(detail.code or "ResultRefused", detail.message)


def _said(answer: httpx.Response) -> str:
    """Return the control plane's own words, after a space; nothing where it gave none."""
    detail = _detail(answer)
    return f" {detail.message}" if detail else ""


def _detail(answer: httpx.Response) -> ErrorDetail | None:
    try:
        return ErrorBody.model_validate_json(answer.content).error
    except ValidationError:
        return None


def _may_change(answer: httpx.Response) -> bool:
    """Say whether the same request may be taken later: a fault of its own is final."""
    status = answer.status_code
    if status == HTTPStatus.CONFLICT:
        detail = _detail(answer)
        return detail is not None and detail.code == _CONCURRENT_WRITE
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _PASSING
