"""Clients of the control plane's internal API: asynchronous for operator and runtimes, blocking for trainers.

Every request of this API is idempotent, so a failed one may be repeated. Both clients send the bearer token
that is current, never use a proxy, and raise the same errors:

- ``NotReady`` ControlPlaneUnavailable: the control plane did not answer, or not now (5xx, 408, 425, 429).
- ``Refused``, an ``InvalidInput`` with the control plane's reason: any other status but success.
- ``HmiError`` TokenRefused: the token was not accepted (401 or 403).

The asynchronous client uses aiohttp because it takes a fifth of the processor time of httpx.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Self, TypeVar
from urllib.parse import urlencode

import aiohttp
from pydantic import BaseModel, ValidationError

from hmi_api.errors import ErrorBody, HmiError, InvalidInput, NotReady
from hmi_api.internal.catalog import (
    AdapterETags,
    AdapterKeys,
    AdapterRecord,
    AdapterView,
    ClusterRegistration,
    DomainRecord,
    DomainView,
    PublishAgain,
    PublishedAgain,
    RecordPage,
    RegisteredCluster,
    Revocation,
)
from hmi_api.internal.precision import EngineReports, PrecisionRequest, RecordedPrecision
from hmi_api.internal.refreshes import Refreshes, RestoredTable, RestoreTable
from hmi_api.internal.retry import RetryPolicy, Unavailable
from hmi_api.internal.runs import (
    RunCreate,
    RunFailure,
    RunPod,
    RunPods,
    RunView,
)
from hmi_api.internal.runtimes import DesiredState, Heartbeat, HeartbeatReply, RuntimeRegistration
from hmi_api.internal.window_counts import WindowCountReport
from hmi_api.names import DomainKey, KindName, Tenant
from hmi_api.security.bearer import TokenSource

PREFIX = "/internal/v1"
FEW_ATTEMPTS = RetryPolicy(first_wait=0.2, longest_wait=2.0, attempts=4)
ONE_ATTEMPT = RetryPolicy(first_wait=0.0, longest_wait=0.0, attempts=1)

_PATHS: dict[KindName, str] = {"Domain": "domains", "TaskAdapter": "adapters"}
_TRY_LATER = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
_NOT_ALLOWED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
_TIMEOUT_SECONDS = 10.0
_CONNECTIONS = 32
_KEEP_SECONDS = 4.0
"""How long an idle connection is kept: less than the control plane keeps it."""

ModelT = TypeVar("ModelT", bound=BaseModel)


class Refused(InvalidInput):
    """The control plane refused a request, with this HTTP ``status``; repeating it will not help."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.status = status


class ControlPlaneClient:
    """Asynchronous client for the operator and for runtimes.

    ``url`` is the control plane's address, and ``token`` a token or where it is read from. A request takes at
    most 10 s and is repeated by ``retry``. Use it in ``async with``, or call ``close`` at the end.
    """

    def __init__(self, url: str, token: str | TokenSource, *, retry: RetryPolicy = FEW_ATTEMPTS) -> None:
        self.url = url
        self._root = url.rstrip("/") + PREFIX
        self._token = TokenSource(token) if isinstance(token, str) else token
        self._retry = retry
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # --- what the operator calls ---------------------------------------------------------------------

    async def ensure_tenant(self, tenant: Tenant) -> None:
        """Create the tenant if it is new."""
        await self._request("PUT", f"/tenants/{tenant}")

    async def declare(self, kind: KindName, key: str, record: DomainRecord | AdapterRecord) -> None:
        """Create or update a resource in the catalog; ``key`` is namespace/name."""
        await self._request("PUT", f"/{_PATHS[kind]}/{key}", record)

    async def domain(self, key: str) -> DomainView | None:
        """Return a Domain as the catalog has it, with its lookups and tree; None if it is not there."""
        # An older control plane ignores a parameter that it does not know, and leaves that part out.
        return await self._find(DomainView, "GET", f"/domains/{key}?lookups=true&tree=true")

    async def adapter(self, key: str) -> AdapterView | None:
        """Return a TaskAdapter as the catalog has it; None if it is not there."""
        return await self._find(AdapterView, "GET", f"/adapters/{key}")

    async def adapter_etags(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the ETags of TaskAdapters by key, of those known; at most ``MAX_ETAGS`` keys."""
        return (await self._get(AdapterETags, "POST", "/adapters/etags", AdapterKeys(keys=list(keys)))).etags

    async def delete(self, kind: KindName, key: str, uid: str | None = None) -> None:
        """Delete a resource with its versions and artifacts; with ``uid``, only if it is of that object."""
        await self._request("DELETE", f"/{_PATHS[kind]}/{key}{_query(uid=uid)}", ignore=(404,))

    async def revoke(self, key: str, revocation: Revocation) -> None:
        """Revoke a TaskAdapter's use of its Domain; do nothing if the TaskAdapter is gone."""
        await self._request("PUT", f"/adapters/{key}/revocation", revocation, ignore=(404,))

    async def restore(self, key: str) -> None:
        """Take back a revocation; do nothing if the TaskAdapter is gone."""
        await self._request("DELETE", f"/adapters/{key}/revocation", ignore=(404,))

    async def register_cluster(self, cluster: str) -> RegisteredCluster | None:
        """Register this cluster with the catalog; None if the control plane is too old to know the call.

        Raises ``InvalidInput`` OtherCluster if the catalog belongs to another cluster.
        """
        return await self._find(RegisteredCluster, "PUT", "/cluster", ClusterRegistration(uid=cluster))

    async def list_records(
        self, kind: KindName, cursor: str | None = None, *, domain: DomainKey | None = None
    ) -> RecordPage:
        """List a page of the resources in the catalog; of TaskAdapters only those on ``domain``, if given."""
        return await self._get(RecordPage, "GET", f"/{_PATHS[kind]}{_query(cursor=cursor, domain=domain)}")

    async def publish_again(self, kind: KindName, key: str, wanted: PublishAgain) -> int | None:
        """Publish the declared spec's earlier version again; return its new number, None if none is left."""
        # An older control plane does not know this call: 404 during an upgrade.
        answer = await self._find(PublishedAgain, "POST", f"/{_PATHS[kind]}/{key}/publish-again", wanted)
        return answer.version if answer else None

    async def refreshes(self, key: str) -> Refreshes | None:
        """Return a Domain's tables and its last refresh run; None if the control plane does not know it.

        A control plane that is too old to know the call gives None, too.
        """
        return await self._find(Refreshes, "GET", f"/domains/{key}/refreshes")

    async def restore_table(self, key: str, wanted: RestoreTable) -> int | None:
        """Roll back to a kept version's table; return the version that has it now, None if it is gone."""
        answer = await self._find(RestoredTable, "POST", f"/domains/{key}/restore-table", wanted)
        return answer.version if answer else None

    async def create_run(self, request: RunCreate) -> RunView:
        """Create a run; the same uid, digest and attempt give the same run."""
        return await self._get(RunView, "POST", "/runs", request)

    async def run(self, run_id: str) -> RunView | None:
        """Return a run; None if it is not there."""
        return await self._find(RunView, "GET", f"/runs/{run_id}")

    async def record_pods(self, run_id: str, pods: Sequence[RunPod]) -> None:
        """Record the pods of a run's Job; do nothing if the run is gone."""
        await self._request("PUT", f"/runs/{run_id}/pods", RunPods(pods=list(pods)), ignore=(404,))

    async def fail_run(self, run_id: str, failure: RunFailure) -> None:
        """Record that a run ended without a result; do nothing if it is gone or has ended."""
        await self._request("POST", f"/runs/{run_id}/fail", failure, ignore=(404, 409))

    # --- what a runtime calls -------------------------------------------------------------------------

    async def register_runtime(self, runtime_id: str, registration: RuntimeRegistration) -> None:
        """Register a runtime, or its new incarnation."""
        await self._request("PUT", f"/runtimes/{runtime_id}", registration)

    async def heartbeat(self, runtime_id: str, beat: Heartbeat) -> HeartbeatReply:
        """Report what changed on a runtime."""
        return await self._get(HeartbeatReply, "POST", f"/runtimes/{runtime_id}/heartbeat", beat)

    async def report_window_counts(self, runtime_id: str, report: WindowCountReport) -> bool:
        """Report the windows that were looked up; False if the control plane is too old to know the call."""
        try:
            await self._request("POST", f"/runtimes/{runtime_id}/window-counts", report)
        except Refused as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return False
            raise
        return True

    async def desired_state(self, runtime_id: str, since: int, wait: float) -> DesiredState | None:
        """Return the desired state after revision ``since``; None if the runtime is not registered.

        The control plane waits up to ``wait`` seconds for a change before it answers.
        """
        path = f"/runtimes/{runtime_id}/desired{_query(since=since, wait=wait)}"
        return await self._find(DesiredState, "GET", path, more_seconds=wait)

    async def record_precision(self, runtime_id: str, request: PrecisionRequest) -> RecordedPrecision | None:
        """Return the choice that is recorded then; None if the control plane is too old to know the call."""
        path = f"/runtimes/{runtime_id}/precision-choices"
        return await self._find(RecordedPrecision, "POST", path, request)

    async def report_engines(self, runtime_id: str, reports: EngineReports) -> None:
        """Report the precision and kernel of each engine; an older control plane ignores it."""
        await self._request("PUT", f"/runtimes/{runtime_id}/engines", reports, ignore=(404,))

    async def deregister_runtime(self, runtime_id: str) -> None:
        """Remove a runtime that has drained."""
        await self._request("DELETE", f"/runtimes/{runtime_id}")

    # --- requests -------------------------------------------------------------------------------------

    async def _get(
        self, type_: type[ModelT], method: str, path: str, body: BaseModel | None = None
    ) -> ModelT:
        return type_.model_validate_json(await self._request(method, path, body))

    async def _find(
        self, type_: type[ModelT], method: str, path: str, body: BaseModel | None = None, **options: float
    ) -> ModelT | None:
        """Return the answer; None for 404."""
        content = await self._request(method, path, body, ignore=(404,), **options)
        return type_.model_validate_json(content) if content else None

    async def _request(
        self,
        method: str,
        path: str,
        body: BaseModel | None = None,
        *,
        ignore: Sequence[int] = (),
        more_seconds: float = 0.0,
    ) -> bytes:
        """Return the body of a successful answer; nothing for a status in ``ignore``."""
        content = body.model_dump_json(by_alias=True).encode() if body is not None else None
        limit = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS + more_seconds)

        async def send() -> bytes:
            return await self._send(method, path, content, limit)

        try:
            return await self._retry.run_async(send, should_retry=is_unavailable)
        except Unavailable as error:
            raise not_ready(error) from error
        except Refused as error:
            if error.status in ignore:
                return b""
            raise

    async def _send(
        self, method: str, path: str, content: bytes | None, limit: aiohttp.ClientTimeout
    ) -> bytes:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=_CONNECTIONS, keepalive_timeout=_KEEP_SECONDS)
            self._session = aiohttp.ClientSession(connector=connector, trust_env=False)
        try:
            headers = {"Authorization": f"Bearer {self._token.current()}"}
            if content is not None:
                headers["Content-Type"] = "application/json"
            async with self._session.request(
                method,
                self._root + path,
                data=content,
                headers=headers,
                allow_redirects=False,
                timeout=limit,
            ) as response:
                answer = await response.read()
        except NotReady as error:  # there is no token
            raise Unavailable(error.message) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"it could not be reached ({type(error).__name__})") from error
        check_status(response.status, answer, response.headers.get("Retry-After"))
        return answer


def _query(**parameters: object) -> str:
    given = {name: value for name, value in parameters.items() if value is not None}
    return f"?{urlencode(given)}" if given else ""


def is_unavailable(error: BaseException) -> bool:
    return isinstance(error, Unavailable)


def not_ready(error: Unavailable) -> NotReady:
    return NotReady(
        "ControlPlaneUnavailable", f"The control plane is not available: {error}; try again later."
    )


def check_status(status: int, body: bytes, retry_after: str | None) -> None:
    """Raise for any status but success: ``Unavailable``, ``HmiError`` TokenRefused or ``Refused``."""
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return
    reason, message = _explain(status, body)
    # Another request wrote the same row at the same moment, which says nothing about this one.
    lost_race = status == HTTPStatus.CONFLICT and reason == "ConcurrentWrite"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _TRY_LATER or lost_race:
        seconds = float(retry_after) if retry_after and retry_after.isdecimal() else None
        raise Unavailable(f"it answered {status}", seconds)
    if status in _NOT_ALLOWED:
        raise HmiError("TokenRefused", f"The control plane refused the internal token: {message}")
    raise Refused(status, reason or "RequestRefused", message)


def _explain(status: int, body: bytes) -> tuple[str | None, str]:
    """Return reason and message of an error answer."""
    try:
        error = ErrorBody.model_validate_json(body).error
        return error.code, error.message
    except ValidationError:
        return None, f"The control plane answered {status}."
