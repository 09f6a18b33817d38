"""Reading over a network that fails now and then: bounded tries, going on where the last one stopped."""

import io
import logging
import time
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from hmi_api.errors import HmiError, InvalidInput, NotReady

_LOG = logging.getLogger(__name__)

ATTEMPTS = 6
FIRST_WAIT_SECONDS = 0.5  # then doubled: about 16 s over all attempts
_CHUNK_BYTES = 1 << 20
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
# Of botocore and aiohttp, which are only there for who reads over the network.
_PASSING_NAMES = {
    "HTTPClientError",
    "EndpointConnectionError",
    "ConnectTimeoutError",
    "IncompleteReadError",
    "ClientConnectionError",
    "ClientPayloadError",
}
_PASSING_STATUSES = {408, 425, 429}
_FIRST_SERVER_ERROR = 500

ResultT = TypeVar("ResultT")


def tried(action: Callable[[], ResultT], uri: str) -> ResultT:
    """Do what reads ``uri``, again while it fails for a passing cause.

    Raises ``NotReady`` SourceAway when it still does at last, and whatever is no passing cause at once.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:
            if not may_pass(error):
                raise
            if attempt == ATTEMPTS:
                raise _away(uri, error) from error
            wait = FIRST_WAIT_SECONDS * 2 ** (attempt - 1)
            _LOG.warning("%s could not be read (%s); trying again in %.1f s", uri, _said(error), wait)
            time.sleep(wait)
    raise AssertionError("unreachable: the last attempt returns or raises")


def may_pass(error: BaseException) -> bool:
    """Say whether the same could succeed a little later: the network or the server, not the address."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return may_pass(error.__cause__)  # fsspec's HTTP says so of a server that does not answer, too
    if isinstance(error, _LASTING):
        return False
    status = getattr(error, "status", None)
    if isinstance(status, int) and status:
        return status >= _FIRST_SERVER_ERROR or status in _PASSING_STATUSES
    by_name = any(base.__name__ in _PASSING_NAMES for base in type(error).__mro__)
    return by_name or isinstance(error, OSError | TimeoutError)


def open_rows(filesystem: Any, path: str, uri: str) -> BinaryIO:
    """Open a file for reading, decompressed by its ending; a remote one survives passing failures."""
    if isinstance(filesystem, LocalFileSystem):
        return cast(BinaryIO, filesystem.open(path, "rb", compression="infer"))
    file = io.BufferedReader(ResumingFile(filesystem, path, uri), _CHUNK_BYTES)
    compression = fsspec.utils.infer_compression(path)
    return cast(BinaryIO, fsspec.compression.compr[compression](file, mode="rb")) if compression else file


class ResumingFile(io.RawIOBase):
    """A remote file that is opened again, where reading stopped, when the network fails.

    Reading raises ``NotReady`` SourceAway and ``InvalidInput`` CorpusNotFound.
    """

    def __init__(self, filesystem: Any, path: str, uri: str) -> None:
        self._filesystem = filesystem
        self._path = path
        self._uri = uri
        self._position = 0
        self._file: Any = None
        self._size: int | None = tried(lambda: filesystem.info(path), uri).get("size")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        try:
            data = tried(lambda: self._read(len(view)), self._uri)
        except HmiError:
            raise
        except Exception as error:  # every file system has its own kinds
            raise unreadable(self._uri, "CorpusNotFound", error) from error
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _read(self, count: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._reopened()
            data = bytes(self._file.read(count))
        except Exception:
            self._drop()
            raise
        if not data and self._size is not None and self._position < self._size:
            self._drop()
            raise TimeoutError(f"it ended after {self._position} of {self._size} bytes")
        return data

    def _reopened(self) -> Any:
        file = self._filesystem.open(self._path, "rb")
        if not self._position:
            return file
        if file.seekable():
            file.seek(self._position)
            return file
        left = self._position  # a server that gives no ranges sends it all again
        while left:
            left -= len(file.read(min(left, _CHUNK_BYTES))) or left
        return file

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def unreadable(uri: str, reason: str, error: Exception) -> InvalidInput:
    """Return what a user is told of an address that cannot be read."""
    return InvalidInput(
        reason, f"{uri} cannot be opened: {_said(error)}. Check the address and its credentials."
    )


def _away(uri: str, error: Exception) -> NotReady:
    return NotReady("SourceAway", f"{uri} did not answer after {ATTEMPTS} tries ({_said(error)}).")


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
