"""Artifacts through the control plane, for programs that reach no store: training Jobs.

Files go up by their digest and become an artifact with the commit; what is fetched is verified here like any
other copy. A transfer that breaks goes on where it stopped.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path

import httpx

from hmi_api.artifacts import MANIFEST_FILE, ArtifactManifest, ArtifactRef, digits_of
from hmi_api.errors import InvalidInput, NotReady
from hmi_api.internal.runs import ArtifactCommit, ArtifactCommitted
from hmi_runtime.artifacts.base import Store
from hmi_runtime.artifacts.verification import chunks

log = logging.getLogger(__name__)

_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0
_MAY_PASS = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}


class _Passing(Exception):
    """The control plane did not answer, or not now."""


class HttpArtifactStore(Store):
    """The artifacts of one run. ``client`` has the control plane's address and shows the run's token.

    A control plane that is away is tried again for ``patience`` seconds, counted from the last byte that
    passed; then ``NotReady`` ControlPlaneAway is raised. What it refuses is ``InvalidInput``.
    """

    def __init__(
        self,
        client: httpx.Client,
        run_id: str,
        *,
        patience: float = 600.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._client = client
        self._path = f"/internal/v1/artifacts/{run_id}"
        self._waits = partial(_Waits, patience, sleep, clock)

    def _put(self, ref: ArtifactRef, manifest: ArtifactManifest, data: bytes, folder: Path) -> None:
        body = ArtifactCommit(manifest=data.decode()).model_dump(by_alias=True)
        files = {file.digest: folder / file.path for file in manifest.files}
        while True:
            answer = self._insist(lambda: self._client.post(self._path, json=body, timeout=_TIMEOUT))
            committed = ArtifactCommitted.model_validate_json(answer.content)
            if committed.artifact is not None:
                break
            for digest in committed.missing:
                self._upload(digest, files[digest])
        if committed.artifact != ref:
            raise InvalidInput(
                "ArtifactRefused",
                f"The control plane published {committed.artifact.digest}, not {ref.digest}.",
            )

    def _upload(self, digest: str, path: Path) -> None:
        address = f"{self._path}/files/{digits_of(digest)}"
        headers = {"Content-Length": str(path.stat().st_size), "Content-Type": "application/octet-stream"}

        def send() -> httpx.Response:
            with path.open("rb") as source:
                return self._client.put(address, content=chunks(source), headers=headers, timeout=_TIMEOUT)

        self._insist(send)

    def _manifest_bytes(self, ref: ArtifactRef) -> bytes:
        try:
            address = self._address(ref, MANIFEST_FILE)
            return self._insist(lambda: self._client.get(address, timeout=_TIMEOUT)).content
        except FileNotFoundError as error:
            raise NotReady(
                "ArtifactMissing",
                f"{ref.uri} is not there for this run; wait until it is published, or publish it again.",
            ) from error

    @contextmanager
    def _reading(self, ref: ArtifactRef, path: str) -> Iterator[Iterable[bytes]]:
        yield self._pieces(self._address(ref, path))

    def _pieces(self, address: str) -> Iterator[bytes]:
        """Yield a file's bytes; a connection that breaks is made again for what is left."""
        got, trouble = 0, ""
        waits = self._waits()
        while True:
            try:
                headers = {"Range": f"bytes={got}-"} if got else {}
                with self._client.stream("GET", address, headers=headers, timeout=_TIMEOUT) as answer:
                    if got and answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                        return  # all of it had arrived
                    self._check(answer)
                    for piece in answer.iter_raw():
                        got += len(piece)
                        waits = self._waits()
                        yield piece
                    return
            except (httpx.TransportError, _Passing) as error:
                trouble = str(error) or type(error).__name__
            waits.wait(trouble)

    def _insist(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """Send until there is an answer. Raises ``FileNotFoundError`` for 404."""
        waits = self._waits()
        while True:
            try:
                answer = send()
                self._check(answer)
                return answer
            except (httpx.TransportError, _Passing) as error:
                trouble = str(error) or type(error).__name__
            waits.wait(trouble)

    def _check(self, answer: httpx.Response) -> None:
        status = answer.status_code
        if answer.is_success:
            return
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _MAY_PASS:
            raise _Passing(f"it answered {status}")
        if status == HTTPStatus.NOT_FOUND:
            raise FileNotFoundError(answer.url.path)
        answer.read()
        raise InvalidInput("ArtifactRefused", f"The control plane refused {answer.url.path}: {_said(answer)}")

    def _address(self, ref: ArtifactRef, path: str) -> str:
        return f"{self._path}/{digits_of(ref.digest)}/{path}"


class _Waits:
    """The waits between attempts, ever longer, until ``patience`` seconds are over."""

    def __init__(self, patience: float, sleep: Callable[[float], None], clock: Callable[[], float]) -> None:
        self._sleep = sleep
        self._clock = clock
        self._until = clock() + patience
        self._next = _FIRST_WAIT

    def wait(self, trouble: str) -> None:
        if self._clock() + self._next > self._until:
            raise NotReady(
                "ControlPlaneAway",
                f"Artifacts could not be transferred through the control plane ({trouble}); "
                "start the run again when it is back.",
            )
        log.warning("artifacts wait for the control plane (%s); trying again in %.1f s", trouble, self._next)
        self._sleep(self._next)
        self._next = min(self._next * 2, _LONGEST_WAIT)


def _said(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"it answered {answer.status_code}"
