"""The way to a runtime: what is asked, and failures told apart by whether another try can help."""

from pydantic import ValidationError

from hmi_api.errors import NotReady
from hmi_api.internal.inference import InferReply, InferRequest
from hmi_api.security.bearer import TokenSource
from hmi_control_plane.gateway.connections import ConnectionBrokenError, NoConnectionError, RuntimeNetwork

INFER_PATH = "/internal/v1/infer"


class RuntimeUnavailableError(Exception):
    """A runtime did not answer a request; inference changes nothing there, so another may be asked.

    ``refused`` says that no connection was made, so that even the same runtime may be asked again.
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class RuntimeClient:
    """Calls runtimes with this part's token. How long it may take is the caller's to say."""

    def __init__(self, token: TokenSource, network: RuntimeNetwork) -> None:
        self._network = network
        self._token = token

    async def infer(self, url: str, request: InferRequest) -> InferReply:
        """Return the runtime's answer. Raises RuntimeUnavailableError."""
        try:
            token = self._token.current()
        except NotReady as error:
            raise RuntimeUnavailableError(error.message) from error
        body = request.model_dump_json(by_alias=True, exclude_none=True).encode()
        try:
            answer = await self._network.post(f"{url.rstrip('/')}{INFER_PATH}", token, body)
        except (NoConnectionError, ConnectionBrokenError) as error:
            refused = isinstance(error, NoConnectionError)
            raise RuntimeUnavailableError(f"{url}: {error}", refused=refused) from error
        if answer.status != 200:
            raise RuntimeUnavailableError(f"{url} answered {answer.status}")
        try:
            reply = InferReply.model_validate_json(answer.body)
        except ValidationError as error:
            raise RuntimeUnavailableError(f"{url} answered what is no InferReply: {error}") from error
        if len(reply.results) != len(request.rows):
            raise RuntimeUnavailableError(f"{url} answered {len(reply.results)} of {len(request.rows)} rows")
        return reply

    async def close(self) -> None:
        """Close all connections."""
        await self._network.close()
