"""Client of the control plane's internal API (``hmi_api.internal.runs``)."""

import asyncio
import json
import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp

from hmi_api.errors import HmiError, InvalidInput, NotReady
from hmi_api.internal.catalog import (
    AdapterKeys,
    AdapterRecord,
    AdapterStamps,
    AdapterView,
    ClusterClaim,
    ClusterClaimed,
    DeclaredPage,
    DomainRecord,
    DomainView,
    PublishAgain,
    PublishedAgain,
    Revocation,
)
from hmi_api.internal.runs import RunCreate, RunFailure, RunPod, RunPods, RunView
from hmi_api.internal.storable import WireModel
from hmi_api.names import DomainKey, Tenant
from hmi_api.security.bearer import TokenSource
from hmi_operator.ports import KindName

logger = logging.getLogger(__name__)

_PREFIX = "/internal/v1"
_PATHS: dict[KindName, str] = {"Domain": "domains", "TaskAdapter": "adapters"}
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_NOT_ALLOWED = {401, 403}
_CONCURRENT_WRITE = "ConcurrentWrite"
ATTEMPTS = 4
FIRST_WAIT_SECONDS = 0.2
_KEEP_SECONDS = 4.0
"""How long a connection is kept that nobody uses: less than the control plane keeps it."""


class ControlPlaneClient:
    """Speaks to the control plane over HTTP; every request has a time limit and a bounded number of tries.

    ``url`` is the control plane's address; ``token`` says who asks, itself or where it is read from. To be
    used within ``async with``. Errors: ``InvalidInput`` when the control plane refuses what was sent,
    ``NotReady`` when it cannot be reached or cannot answer now, and ``HmiError`` with reason
    ``TokenRefused`` when the internal token is not taken.
    """

    def __init__(
        self, url: str, token: str | TokenSource, *, timeout_seconds: float = 10.0, connections: int = 32
    ) -> None:
        self.url = url
        self._root = url.rstrip("/") + _PREFIX
        self._token = TokenSource(token) if isinstance(token, str) else token
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=_KEEP_SECONDS)
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, trust_env=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def ensure_tenant(self, tenant: Tenant) -> None:
        """Make the tenant known."""
        await self._ask("PUT", f"/tenants/{tenant}")

    async def declare_domain(self, key: str, record: DomainRecord) -> None:
        """Tell the catalog of a Domain; ``key`` is namespace/name."""
        await self._ask("PUT", f"/domains/{key}", record)

    async def declare_adapter(self, key: str, record: AdapterRecord) -> None:
        """Tell the catalog of a TaskAdapter; ``key`` is namespace/name."""
        await self._ask("PUT", f"/adapters/{key}", record)

    async def domain(self, key: str) -> DomainView | None:
        """Return a Domain as the catalog knows it, or None."""
        answer = await self._ask("GET", f"/domains/{key}", may_miss=True)
        return None if answer is None else DomainView.model_validate(answer)

    async def adapter(self, key: str) -> AdapterView | None:
        """Return a TaskAdapter as the catalog knows it, or None."""
        answer = await self._ask("GET", f"/adapters/{key}", may_miss=True)
        return None if answer is None else AdapterView.model_validate(answer)

    async def adapter_stamps(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the stamps of TaskAdapters by key, of those known; at most ``STAMPS_AT_ONCE`` keys."""
        answer = await self._ask("POST", "/adapters/stamps", AdapterKeys(keys=list(keys)))
        return AdapterStamps.model_validate(answer).stamps

    async def erase_domain(self, key: str, uid: str | None = None) -> None:
        """Erase a Domain's versions and artifacts, with ``uid`` only those of that object; idempotent."""
        await self._ask("DELETE", f"/domains/{key}{_query(uid=uid)}", may_miss=True)

    async def erase_adapter(self, key: str, uid: str | None = None) -> None:
        """Erase a TaskAdapter's versions, artifacts and placements, as ``erase_domain`` does; idempotent."""
        await self._ask("DELETE", f"/adapters/{key}{_query(uid=uid)}", may_miss=True)

    async def revoke(self, key: str, revocation: Revocation) -> None:
        """Say that a TaskAdapter may not stand on its Domain any more; nothing happens when it is gone."""
        await self._ask("PUT", f"/adapters/{key}/revocation", revocation, may_miss=True)

    async def restore(self, key: str) -> None:
        """Say that a TaskAdapter may stand on its Domain again; nothing happens when it is gone."""
        await self._ask("DELETE", f"/adapters/{key}/revocation", may_miss=True)

    async def claim(self, cluster: str) -> ClusterClaimed | None:
        """Say that this cluster's operator works on the catalog; None where the catalog has no such call."""
        answer = await self._ask("PUT", "/cluster", ClusterClaim(uid=cluster), may_miss=True)
        return None if answer is None else ClusterClaimed.model_validate(answer)

    async def declared(
        self, kind: KindName, cursor: str | None = None, *, domain: DomainKey | None = None
    ) -> DeclaredPage:
        """Return a page of what the catalog has of a kind; of TaskAdapters, those on one Domain if given."""
        path = f"/{_PATHS[kind]}" + _query(cursor=cursor, domain=domain)
        return DeclaredPage.model_validate(await self._ask("GET", path))

    async def publish_again(self, kind: KindName, key: str, wanted: PublishAgain) -> int | None:
        """Publish the version again that was made from the declared spec; return its number, if any."""
        # Unknown to a control plane that is older than this operator, while both are upgraded.
        answer = await self._ask("POST", f"/{_PATHS[kind]}/{key}/publish-again", wanted, may_miss=True)
        return None if answer is None else PublishedAgain.model_validate(answer).version

    async def create_run(self, request: RunCreate) -> RunView:
        """Create a run; the same uid, digest and attempt give the same run."""
        return RunView.model_validate(await self._ask("POST", "/runs", request))

    async def run(self, run_id: str) -> RunView | None:
        """Return a run, or None."""
        answer = await self._ask("GET", f"/runs/{run_id}", may_miss=True)
        return None if answer is None else RunView.model_validate(answer)

    async def note_pods(self, run_id: str, pods: Sequence[RunPod]) -> None:
        """Say which pods work on a run; nothing happens when it is gone."""
        await self._ask("PUT", f"/runs/{run_id}/pods", RunPods(pods=list(pods)), may_miss=True)

    async def fail_run(self, run_id: str, failure: RunFailure) -> None:
        """Record that a run ended without a result; nothing happens when it has ended already."""
        await self._ask("POST", f"/runs/{run_id}/fail", failure, may_miss=True, may_conflict=True)

    async def _ask(
        self,
        method: str,
        path: str,
        body: WireModel | None = None,
        *,
        may_miss: bool = False,
        may_conflict: bool = False,
    ) -> Any:
        """Send a request, again while the failure may pass; every request of this API is idempotent."""
        content = body.model_dump_json(by_alias=True).encode() if body is not None else None
        trouble = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
            try:
                code, answer = await self._send(method, path, content)
            except NotReady as error:
                trouble = error.message
                continue
            except (aiohttp.ClientError, TimeoutError) as error:
                trouble = f"it could not be reached ({type(error).__name__})"
                continue
            if code not in _PASSING and not _lost_a_race(code, answer):
                return _read(code, answer, may_miss=may_miss, may_conflict=may_conflict)
            trouble = f"it answered {code} to {method} {path}"
        raise NotReady(
            "ControlPlaneUnavailable", f"The control plane does not work now: {trouble}; try again."
        )

    async def _send(self, method: str, path: str, content: bytes | None) -> tuple[int, bytes]:
        """Return code and body of the answer. Raises ``NotReady`` while there is no token."""
        if self._session is None:
            raise RuntimeError("a ControlPlaneClient is used within `async with`")
        headers = {"Authorization": f"Bearer {self._token.current()}"}
        if content is not None:
            headers["Content-Type"] = "application/json"
        async with self._session.request(
            method, self._root + path, data=content, headers=headers, allow_redirects=False
        ) as response:
            return response.status, await response.read()


def _query(**parameters: str | None) -> str:
    given = {name: value for name, value in parameters.items() if value is not None}
    return f"?{urlencode(given)}" if given else ""


def _lost_a_race(code: int, body: bytes) -> bool:
    """Say whether another request wrote the same thing at the same moment, which says nothing of this one."""
    return code == HTTPStatus.CONFLICT and _explain(code, body)[0] == _CONCURRENT_WRITE


def _read(code: int, body: bytes, *, may_miss: bool, may_conflict: bool) -> Any:
    if code == HTTPStatus.NO_CONTENT:
        return None
    if HTTPStatus.OK <= code < HTTPStatus.MULTIPLE_CHOICES:
        return json.loads(body)
    if (code == HTTPStatus.NOT_FOUND and may_miss) or (code == HTTPStatus.CONFLICT and may_conflict):
        return None
    reason, message = _explain(code, body)
    if code in _NOT_ALLOWED:
        raise HmiError("TokenRefused", f"The control plane did not take the internal token: {message}")
    raise InvalidInput(reason, message)


def _explain(code: int, body: bytes) -> tuple[str, str]:
    """Return reason and message of an OpenAI-shaped error body; plain words for any other body."""
    try:
        error = json.loads(body)["error"]
        return str(error["code"] or "Refused"), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return "Refused", f"The control plane answered {code}."
