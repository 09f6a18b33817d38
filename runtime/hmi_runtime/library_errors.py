"""Classification of exceptions of file and network libraries: a damaged file, or a transient failure.

All readers of users' data use it: rows, archives, base models and adapters. A damaged file is permanent
(``InvalidInput``); a network failure may be transient (``NotReady``); anything else is a bug.
"""

import csv
import errno
import gzip
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace

from safetensors import SafetensorError

from hmi_api.errors import InvalidInput

_DAMAGED: tuple[type[Exception], ...] = (
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    EOFError,
    csv.Error,
    UnicodeError,
    SafetensorError,
    struct.error,
    RecursionError,  # JSON that is nested too deeply
    NotImplementedError,  # a compression method that zipfile does not know
    ValueError,  # JSON, and numbers in headers
    OverflowError,
    KeyError,
    TypeError,
    AttributeError,  # JSON that is a list instead of an object
)
_PERMANENT_ERRNOS = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
    errno.ENODEV,
    errno.ENXIO,
}
# By name, since botocore, aiohttp and the hub's HTTP client may not be installed or imported.
_TRANSIENT_NAMES = {
    "HTTPClientError",
    "EndpointConnectionError",
    "ConnectTimeoutError",
    "IncompleteReadError",
    "ClientConnectionError",
    "ClientPayloadError",
    "TransportError",
    "XetDownloadError",
}
_PERMANENT_NAMES = {
    "SSLCertVerificationError",
    "ClientConnectorCertificateError",
    "OfflineModeIsEnabled",
    "UnsupportedProtocol",
}
_NETWORK_LIBRARIES = {"aiohttp", "aiobotocore", "botocore", "httpx2", "huggingface_hub", "s3fs"}
_TRANSIENT_STATUSES = {408, 425, 429}
_FIRST_SERVER_ERROR = 500


def is_damaged(error: BaseException) -> bool:
    """Return whether the file's bytes are invalid or missing, so that reading again cannot help."""
    if isinstance(error, FileNotFoundError):
        return True
    if isinstance(error, OSError):
        # gzip and bz2 raise it for bytes of another format; errors of the system have a number.
        return type(error) in (OSError, gzip.BadGzipFile) and error.errno is None
    return isinstance(error, _DAMAGED)


@contextmanager
def invalid_if_damaged(reason: str, what: str, advice: str) -> Iterator[None]:
    """Turn a library's error about damaged bytes into ``InvalidInput`` of ``reason``; let others pass.

    The message is "``what`` cannot be read (error); ``advice``".
    """
    try:
        yield
    except Exception as error:
        if not is_damaged(error):
            raise
        raise InvalidInput(reason, f"{what} cannot be read ({describe_error(error)}); {advice}") from error


def is_transient(error: BaseException) -> bool:
    """Return whether a retry may succeed: the network or the server failed, not the address.

    Connections that fail or time out, and the statuses 408, 425, 429 and 5xx, are transient. Other statuses,
    names that do not exist and certificates that are refused are not.
    """
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return is_transient(error.__cause__)  # fsspec and the hub also raise it if a server does not answer
    names = {base.__name__ for base in type(error).__mro__}
    if names & _PERMANENT_NAMES:
        return False
    status = status_of(error)
    if status is not None:
        return status >= _FIRST_SERVER_ERROR or status in _TRANSIENT_STATUSES
    if names & _TRANSIENT_NAMES:
        return True
    return isinstance(error, OSError) and error.errno not in _PERMANENT_ERRNOS and not is_permanent(error)


def is_permanent(error: OSError) -> bool:
    """Return whether the type of a system error means that a file is missing or not accessible."""
    return isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an error, its response or its cause; None if there is none."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore's
        response = SimpleNamespace(status_code=response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    for status in (getattr(error, "status", None), getattr(response, "status_code", None)):
        if isinstance(status, int) and status:
            return status
    return status_of(error.__cause__) if error.__cause__ is not None else None


def describe_error(error: BaseException) -> str:
    """Return why something failed, in at most 300 characters, without any text from a server.

    A server's text may contain anything, so only a response's status and the type of a network library's
    error are shown.
    """
    if (status := status_of(error)) is not None:
        return f"the server answered {status}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    of_network = type(error).__module__.partition(".")[0] in _NETWORK_LIBRARIES
    words = "" if of_network else str(error)
    words = words or type(error).__name__
    return words if len(words) <= 300 else f"{words[:300]}..."
