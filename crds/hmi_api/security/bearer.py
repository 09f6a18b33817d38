"""The bearer token that a part of HMI sends to the others: a static one, or one from a file.

On Kubernetes the file contains a projected service-account token. The kubelet replaces it before it
expires, so the file is read again every few seconds.
"""

import logging
import time
from collections.abc import Callable, Generator
from pathlib import Path
from threading import Lock

import httpx

from hmi_api.errors import NotReady
from hmi_api.settings import read_trimmed

log = logging.getLogger(__name__)

REREAD_SECONDS = 5.0


class TokenSource:
    """Returns the current token. Thread-safe.

    The file is read at most once in ``reread_seconds``. While it cannot be read, the last token is used.
    """

    def __init__(
        self,
        token: str | None = None,
        *,
        file: Path | None = None,
        reread_seconds: float = REREAD_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take either the token or the file that contains it."""
        if (token is None) == (file is None):
            raise ValueError("give a token or a file")
        self._token = token
        self._file = file
        self._reread_seconds = reread_seconds
        self._clock = clock
        self._read_at = float("-inf")
        self._lock = Lock()

    def current(self) -> str:
        """Return the token. Raises ``NotReady`` TokenUnreadable if none was ever read."""
        with self._lock:
            if self._file is not None and self._clock() - self._read_at >= self._reread_seconds:
                self._read(self._file)
            if self._token is None:
                raise NotReady("TokenUnreadable", f"There is no token in {self._file}; mount it.")
            return self._token

    def _read(self, file: Path) -> None:
        self._read_at = self._clock()
        try:
            token = read_trimmed(file)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            log.warning("the token file %s cannot be read: %s", file, why)
            return
        if token:
            self._token = token


class BearerAuth(httpx.Auth):
    """Adds the current token to every request of an httpx client."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Set the header. Raises ``httpx.TransportError`` while there is no token."""
        try:
            token = self._source.current()
        except NotReady as error:
            raise httpx.TransportError(error.message, request=request) from error
        request.headers["Authorization"] = f"Bearer {token}"
        yield request
