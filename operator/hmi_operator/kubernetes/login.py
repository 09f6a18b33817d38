"""Who the operator is to the API server: its service account's token, or what a kubeconfig says.

kopf does the logging in, for its watches and for our own requests alike.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Protocol

import kopf

from hmi_api.errors import NotReady

_BELIEVED_SECONDS = 60.0
"""How long a token is used before its file is read again: the kubelet replaces it long before it ends."""


class Login(Protocol):
    """Gives the address of the API server and what opens it."""

    @property
    def server(self) -> str:
        """The API server's address."""
        ...

    def tls(self) -> ssl.SSLContext:
        """Return what the connection is checked and opened with."""
        ...

    async def headers(self, *, refused: bool = False) -> dict[str, str]:
        """Return the headers that say who asks; ``refused`` when the last ones were not taken."""
        ...


class KopfLogin:
    """A login read as kopf reads it: in a cluster the service account's files, elsewhere ``KUBECONFIG``.

    Raises ``NotReady`` when there is neither.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._settings = kopf.OperatorSettings()
        self._connection = self._read()
        self._read_at = clock()

    @property
    def server(self) -> str:
        """The API server's address."""
        return self._connection.server

    def tls(self) -> ssl.SSLContext:
        """Return what the connection is checked and opened with."""
        return self._connection.as_ssl_context()

    async def headers(self, *, refused: bool = False) -> dict[str, str]:
        """Return the headers that say who asks; read again when they are a minute old or were refused."""
        if refused or self._clock() - self._read_at > _BELIEVED_SECONDS:
            self._connection = await asyncio.to_thread(self._read)
            self._read_at = self._clock()
        return self._connection.as_http_headers()

    def _read(self) -> kopf.ConnectionInfo:
        return read_login(self._settings)


def read_login(settings: kopf.OperatorSettings) -> kopf.ConnectionInfo:
    """Return what the service account's files say, or else the kubeconfig. Raises ``NotReady``."""
    in_cluster = kopf.login_with_service_account(settings=settings)
    found = in_cluster or kopf.login_with_kubeconfig(settings=settings)
    if found is None:
        raise NotReady("NoCluster", "Neither a service account nor KUBECONFIG says where the API server is.")
    return found
