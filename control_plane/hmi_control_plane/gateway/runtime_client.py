"""The way to a runtime: pooled HTTP, timeouts, and failures told apart by whether another try can help."""

import httpx
from pydantic import ValidationError

from hmi_api.bearer import TokenSource
from hmi_api.errors import NotReady
from hmi_api.wire import InferReply, InferRequest

INFER_PATH = "/internal/v1/infer"


class RuntimeUnavailableError(Exception):
    """A runtime did not answer a request; inference changes nothing there, so another may be asked.

    ``refused`` says that no connection was made, so that even the same runtime may be asked again.
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class RuntimeClient:
    """Calls runtimes with this part's token over one pool of connections.

    It speaks to httpx's transport, not to its client: cookies, redirects, proxies and credentials from the
    environment have no place between HMI's own parts, and would cost a quarter of the gateway's time.
    ``transport`` replaces the network, as for an app in this process. Timeouts are in seconds.
    """

    def __init__(
        self,
        token: TokenSource,
        *,
        connections: int = 256,
        connect_timeout: float = 1.0,
        timeout: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._transport = transport or httpx.AsyncHTTPTransport(limits=limits, trust_env=False)
        self._extensions = {"timeout": httpx.Timeout(timeout, connect=connect_timeout).as_dict()}
        self._token = token

    async def infer(self, url: str, request: InferRequest) -> InferReply:
        """Return the runtime's answer. Raises RuntimeUnavailableError."""
        try:
            token = self._token.current()
        except NotReady as error:
            raise RuntimeUnavailableError(error.message) from error
        try:
            response = await self._transport.handle_async_request(
                httpx.Request(
                    "POST",
                    f"{url.rstrip('/')}{INFER_PATH}",
                    headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
                    content=request.model_dump_json(by_alias=True, exclude_none=True),
                    extensions=self._extensions,
                )
            )
            content = await response.aread()
        except httpx.ConnectError as error:
            raise RuntimeUnavailableError(f"{url}: {error}", refused=True) from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise RuntimeUnavailableError(f"{url}: {type(error).__name__} {error}") from error
        if response.status_code != 200:
            raise RuntimeUnavailableError(f"{url} answered {response.status_code}")
        try:
            reply = InferReply.model_validate_json(content)
        except ValidationError as error:
            raise RuntimeUnavailableError(f"{url} answered what is no InferReply: {error}") from error
        if len(reply.results) != len(request.rows):
            raise RuntimeUnavailableError(f"{url} answered {len(reply.results)} of {len(request.rows)} rows")
        return reply

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.aclose()
