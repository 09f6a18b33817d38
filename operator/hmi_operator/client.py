"""Client of the control plane's internal API (``hmi_api.wire``)."""

import asyncio
import logging
from http import HTTPStatus
from typing import Any

import httpx

from hmi_api.artifacts import WireModel
from hmi_api.errors import HmiError, InvalidInput, NotReady
from hmi_api.names import Tenant
from hmi_api.wire import (
    AdapterRecord,
    AdapterView,
    DomainRecord,
    DomainView,
    RunCreate,
    RunFailure,
    RunView,
)

logger = logging.getLogger(__name__)

_PREFIX = "/internal/v1"
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_NOT_ALLOWED = {401, 403}
_CONCURRENT_WRITE = "ConcurrentWrite"
ATTEMPTS = 4
FIRST_WAIT_SECONDS = 0.2


class ControlPlaneClient:
    """Speaks to the control plane over HTTP; every request has a time limit and a bounded number of tries.

    ``http`` must have the control plane's base URL and, where no ``token`` is given, what says who asks; its
    owner closes it. Errors: ``InvalidInput`` when the
    control plane refuses what was sent, ``NotReady`` when it cannot be reached or cannot answer now, and
    ``HmiError`` with reason ``TokenRefused`` when the internal token is not taken.
    """

    def __init__(
        self, http: httpx.AsyncClient, token: str | None = None, *, timeout_seconds: float = 10.0
    ) -> None:
        self._http = http
        self._headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        self._timeout = timeout_seconds

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

    async def erase_domain(self, key: str) -> None:
        """Erase a Domain's versions and artifacts; idempotent."""
        await self._ask("DELETE", f"/domains/{key}", may_miss=True)

    async def erase_adapter(self, key: str) -> None:
        """Erase a TaskAdapter's versions, artifacts and placements; idempotent."""
        await self._ask("DELETE", f"/adapters/{key}", may_miss=True)

    async def create_run(self, request: RunCreate) -> RunView:
        """Create a run; the same uid, digest and attempt give the same run."""
        return RunView.model_validate(await self._ask("POST", "/runs", request))

    async def run(self, run_id: str) -> RunView | None:
        """Return a run, or None."""
        answer = await self._ask("GET", f"/runs/{run_id}", may_miss=True)
        return None if answer is None else RunView.model_validate(answer)

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
        content = body.model_dump_json(by_alias=True) if body is not None else None
        headers = self._headers | ({"Content-Type": "application/json"} if content else {})
        trouble = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
            try:
                response = await self._http.request(
                    method, _PREFIX + path, content=content, headers=headers, timeout=self._timeout
                )
            except httpx.TransportError as error:
                trouble = f"it could not be reached ({type(error).__name__})"
                continue
            if response.status_code not in _PASSING and not _lost_a_race(response):
                return _read(response, may_miss=may_miss, may_conflict=may_conflict)
            trouble = f"it answered {response.status_code} to {method} {path}"
        raise NotReady(
            "ControlPlaneUnavailable", f"The control plane does not work now: {trouble}; try again."
        )


def _lost_a_race(response: httpx.Response) -> bool:
    """Say whether another request wrote the same thing at the same moment, which says nothing of this one."""
    return response.status_code == HTTPStatus.CONFLICT and _explain(response)[0] == _CONCURRENT_WRITE


def _read(response: httpx.Response, *, may_miss: bool, may_conflict: bool) -> Any:
    status = response.status_code
    if status == HTTPStatus.NO_CONTENT:
        return None
    if response.is_success:
        return response.json()
    if (status == HTTPStatus.NOT_FOUND and may_miss) or (status == HTTPStatus.CONFLICT and may_conflict):
        return None
    reason, message = _explain(response)
    if status in _NOT_ALLOWED:
        raise HmiError("TokenRefused", f"The control plane did not take the internal token: {message}")
    raise InvalidInput(reason, message)


def _explain(response: httpx.Response) -> tuple[str, str]:
    """Return reason and message of an OpenAI-shaped error body; plain words for any other body."""
    try:
        error = response.json()["error"]
        return str(error["code"] or "Refused"), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return "Refused", f"The control plane answered {response.status_code}."
