"""Blocking client of the internal API for a trainer: its run, and the artifacts that the run may use.

It raises the same errors as ``hmi_api.internal.client``. A transfer that breaks off continues after its last
byte.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from itertools import chain
from pathlib import Path
from typing import Self, TypeVar

import httpx
from pydantic import BaseModel

from hmi_api.artifacts import ArtifactRef, digits_of
from hmi_api.internal.client import ONE_ATTEMPT, PREFIX, Refused, check_status, is_unavailable, not_ready
from hmi_api.internal.retry import RetryPolicy, Unavailable
from hmi_api.internal.runs import (
    ArtifactCommit,
    ArtifactCommitted,
    RunFailure,
    RunProgress,
    RunResult,
    RunView,
)
from hmi_api.internal.window_counts import DEFAULT_WINDOWS_READ, WindowCounts
from hmi_api.security.bearer import BearerAuth, TokenSource

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_TRANSFER = httpx.Timeout(60.0, connect=10.0)
_REPORT = httpx.Timeout(10.0)
_PROGRESS = httpx.Timeout(2.0)


class TrainerClient:
    """Blocking client for a trainer: one run, and the artifacts that this run may read and write.

    A failed request is repeated with growing waits for ``report_patience`` seconds, a transfer of artifacts
    for ``transfer_patience`` seconds after its last byte.
    """

    def __init__(
        self,
        url: str,
        token: TokenSource,
        run_id: str,
        *,
        report_patience: float = 3600.0,
        transfer_patience: float = 600.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._run_path = f"{PREFIX}/runs/{run_id}"
        self._artifacts_path = f"{PREFIX}/artifacts/{run_id}"
        self._reports = RetryPolicy(first_wait=0.5, longest_wait=30.0, patience=report_patience)
        self._transfers = RetryPolicy(first_wait=0.5, longest_wait=15.0, patience=transfer_patience)
        self._http = httpx.Client(
            base_url=url,
            auth=BearerAuth(token),
            timeout=_TRANSFER,
            trust_env=False,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def run(self) -> RunView:
        """Return the run."""
        return RunView.model_validate_json(self._request("GET", self._run_path))

    def window_counts(self, most: int = DEFAULT_WINDOWS_READ) -> WindowCounts:
        """Return the windows that traffic of the run's Domain and its children looked up, at most ``most``.

        Raises ``Refused`` NoDomainRun for the run of a TaskAdapter, RunFinished when the run is over.
        """
        # A control plane that is older than ``children`` ignores it and counts the Domain alone.
        path = f"{self._run_path}/window-counts?most={most}&children=true"
        return WindowCounts.model_validate_json(
            self._request("GET", path, policy=self._transfers, timeout=_TRANSFER)
        )

    def report_progress(self, progress: RunProgress) -> None:
        """Report progress, in one attempt of at most 2 s."""
        self._request("POST", f"{self._run_path}/progress", progress, policy=ONE_ATTEMPT, timeout=_PROGRESS)

    def complete_run(self, result: RunResult) -> None:
        """Report the result."""
        self._request("POST", f"{self._run_path}/complete", result)

    def fail_run(self, failure: RunFailure) -> None:
        """Report that there is no result, and why."""
        self._request("POST", f"{self._run_path}/fail", failure)

    def commit_artifact(self, commit: ArtifactCommit) -> ArtifactCommitted:
        """Make an artifact of uploaded files; return it, or the files that are still missing."""
        return ArtifactCommitted.model_validate_json(
            self._request("POST", self._artifacts_path, commit, policy=self._transfers, timeout=_TRANSFER)
        )

    def upload_file(self, digest: str, path: Path) -> None:
        """Upload a file of an artifact."""
        address = f"{self._artifacts_path}/files/{digits_of(digest)}"
        headers = {"Content-Type": "application/octet-stream"}

        def send() -> None:
            with path.open("rb") as file:
                _content(self._http.put(address, content=file, headers=headers))

        self._repeat(send, self._transfers)

    def read_file(self, ref: ArtifactRef, path: str) -> bytes:
        """Return a small file of an artifact. Raises ``FileNotFoundError``."""
        return b"".join(self.stream_file(ref, path))

    def stream_file(self, ref: ArtifactRef, path: str) -> Iterator[bytes]:
        """Yield the bytes of an artifact's file; continue after the last byte if the connection breaks.

        Raises ``FileNotFoundError``.
        """
        address = f"{self._artifacts_path}/{digits_of(ref.digest)}/{path}"
        received = 0
        while True:
            try:
                answer, pieces = self._repeat(partial(self._open, address, received), self._transfers)
            except Refused as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    raise FileNotFoundError(address) from error
                raise
            with contextlib.closing(answer):
                try:
                    for piece in pieces:
                        received += len(piece)
                        yield piece
                    return
                except httpx.TransportError as error:
                    log.warning("%s broke off after %d bytes: %s", address, received, error)

    # --- requests -------------------------------------------------------------------------------------

    def _open(self, address: str, start: int) -> tuple[httpx.Response, Iterator[bytes]]:
        """Request a file from byte ``start`` on; return once the first bytes have arrived."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        answer = self._http.send(self._http.build_request("GET", address, headers=headers), stream=True)
        try:
            if start and answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return answer, iter(())  # the last byte had arrived already
            if not answer.is_success:
                _content(answer)
            pieces = answer.iter_raw()
            return answer, chain((next(pieces, b""),), pieces)
        except BaseException:
            answer.close()
            raise

    def _request(
        self,
        method: str,
        path: str,
        body: BaseModel | None = None,
        *,
        policy: RetryPolicy | None = None,
        timeout: httpx.Timeout = _REPORT,
    ) -> bytes:
        content = body.model_dump_json(by_alias=True) if body is not None else None
        headers = {"Content-Type": "application/json"} if body is not None else {}

        def send() -> bytes:
            answer = self._http.request(method, path, content=content, headers=headers, timeout=timeout)
            return _content(answer)

        return self._repeat(send, policy or self._reports)

    def _repeat(self, send: Callable[[], ResultT], policy: RetryPolicy) -> ResultT:
        def call() -> ResultT:
            try:
                return send()
            except httpx.TransportError as error:
                raise Unavailable(f"{type(error).__name__}: {error}") from error

        try:
            return policy.run(call, should_retry=is_unavailable, name="a request to the control plane")
        except Unavailable as error:
            raise not_ready(error) from error


def _content(answer: httpx.Response) -> bytes:
    """Return the body of a successful answer; raise as ``check_status`` does."""
    content = answer.read()
    check_status(answer.status_code, content, answer.headers.get("Retry-After"))
    return content
