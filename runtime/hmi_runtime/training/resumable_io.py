"""Read over an unreliable network: retry a bounded number of times and resume where reading stopped."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, BinaryIO, TypeVar, cast

from fsspec.implementations.local import LocalFileSystem

from hmi_api.errors import HmiError, InvalidInput, NotReady
from hmi_api.internal.retry import RetryPolicy
from hmi_runtime.library_errors import describe_error, is_transient, status_of
from hmi_runtime.outbound.guard import find_guard_error

_RETRY = RetryPolicy(first_wait=0.5, longest_wait=8.0, attempts=6)  # about 16 s
_CHUNK_BYTES = 1 << 20
ResultT = TypeVar("ResultT")


def retry(action: Callable[[], ResultT], uri: str) -> ResultT:
    """Return ``action()``, which reads ``uri``; retry it while it fails with a transient error.

    Raises ``NotReady`` SourceAway after the last attempt, and any other error at once.
    """
    try:
        return _RETRY.run(action, should_retry=_is_retryable, name=f"reading {uri}")
    except Exception as error:
        if refusal := find_guard_error(error):
            raise refusal from error
        if is_transient(error):
            raise NotReady(
                "SourceAway", f"{uri} did not answer after {_RETRY.attempts} tries ({describe_error(error)})."
            ) from error
        raise


def _is_retryable(error: BaseException) -> bool:
    return isinstance(error, Exception) and find_guard_error(error) is None and is_transient(error)


def open_file(filesystem: Any, path: str, uri: str) -> BinaryIO:
    """Open a file for reading, not decompressed; reading a remote one survives transient errors."""
    if isinstance(filesystem, LocalFileSystem):
        return cast(BinaryIO, filesystem.open(path, "rb"))
    return cast(BinaryIO, io.BufferedReader(ResumableFile(filesystem, path, uri), _CHUNK_BYTES))


class ResumableFile(io.RawIOBase):
    """A remote file that is reopened at the position where reading failed.

    Reading raises ``NotReady`` SourceAway and ``InvalidInput`` CorpusNotFound.
    """

    def __init__(self, filesystem: Any, path: str, uri: str) -> None:
        self._filesystem = filesystem
        self._path = path
        self._uri = uri
        self._position = 0
        self._file: Any = None
        self._size: int | None = retry(lambda: filesystem.info(path), uri).get("size")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        with reading_from(self._uri, "CorpusNotFound"):
            data = retry(lambda: self._read(len(view)), self._uri)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _read(self, count: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._reopen()
            data = bytes(self._file.read(count))
        except Exception:
            self._drop()
            raise
        if not data and self._size is not None and self._position < self._size:
            self._drop()
            raise TimeoutError(f"it ended after {self._position} of {self._size} bytes")
        return data

    def _reopen(self) -> Any:
        file = self._filesystem.open(self._path, "rb")
        if not self._position:
            return file
        if file.seekable():
            file.seek(self._position)
            return file
        left = self._position  # without range requests the server sends it all again
        while left:
            left -= len(file.read(min(left, _CHUNK_BYTES))) or left
        return file

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


@contextmanager
def reading_from(uri: str, reason: str) -> Iterator[None]:
    """Turn any error but ours into ``InvalidInput`` of ``reason``, whose message says what to do."""
    try:
        yield
    except HmiError:
        raise
    except Exception as error:  # each file system raises its own types
        raise _read_error(uri, reason, error) from error


def _read_error(uri: str, reason: str, error: Exception) -> InvalidInput:
    status = status_of(error)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return InvalidInput(
            reason,
            f"{uri} cannot be opened: the server answered {status}. Give credentials that may read it in "
            "secretRef, or make it readable.",
        )
    if isinstance(error, FileNotFoundError):
        return InvalidInput(reason, f"{uri} does not exist; check the address.")
    return InvalidInput(
        reason, f"{uri} cannot be opened: {describe_error(error)}. Check the address and its credentials."
    )
