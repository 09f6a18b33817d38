"""The control plane's internal API, as a runtime calls it."""

import httpx

from hmi_api.internal.runtimes import DesiredState, Heartbeat, HeartbeatReply, RuntimeRegistration
from hmi_api.security.bearer import BearerAuth, TokenSource

_ANSWER_SECONDS = 10.0


class Unknown(Exception):
    """The control plane does not know this runtime: it must register again."""


class ControlPlane:
    """Calls for one runtime. Every method raises ``httpx.HTTPError`` while the control plane is away."""

    def __init__(self, url: str, token: TokenSource, runtime_id: str) -> None:
        self._url = f"{url.rstrip('/')}/internal/v1/runtimes/{runtime_id}"
        self._client = httpx.AsyncClient(
            auth=BearerAuth(token),
            timeout=_ANSWER_SECONDS,
            trust_env=False,  # a proxy for the outside world has no business between HMI's own parts
        )

    async def register(self, registration: RuntimeRegistration) -> None:
        """Say hello."""
        response = await self._client.put(self._url, json=registration.model_dump(mode="json", by_alias=True))
        response.raise_for_status()

    async def heartbeat(self, beat: Heartbeat) -> HeartbeatReply:
        """Report."""
        response = await self._client.post(
            f"{self._url}/heartbeat", json=beat.model_dump(mode="json", by_alias=True)
        )
        response.raise_for_status()
        return HeartbeatReply.model_validate_json(response.content)

    async def desired(self, since: int, wait: float) -> DesiredState:
        """Return what to serve; waits up to ``wait`` seconds for news. ``Unknown`` when not registered."""
        response = await self._client.get(
            f"{self._url}/desired", params={"since": since, "wait": wait}, timeout=_ANSWER_SECONDS + wait
        )
        if response.status_code == httpx.codes.NOT_FOUND:
            raise Unknown
        response.raise_for_status()
        return DesiredState.model_validate_json(response.content)

    async def say_goodbye(self) -> None:
        """Say that this runtime has drained and is gone."""
        response = await self._client.delete(self._url)
        response.raise_for_status()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
