"""The official client of the API server, with bounded requests, retries, counts and HMI's errors."""

import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

import aiohttp
from kubernetes.aio.client import (
    ApiClient,
    BatchV1Api,
    Configuration,
    CoordinationV1Api,
    CustomObjectsApi,
    EventsV1Api,
    V1ObjectMeta,
)
from kubernetes.aio.client.rest import RESTResponse
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from hmi_api.errors import HmiError, NotReady
from hmi_api.internal.retry import RetryPolicy
from hmi_operator.kubernetes.core_api import CoreApi

Manifest = dict[str, Any]
"""A Kubernetes object as JSON."""
RequestObserver = Callable[[str, str, int], None]
"""Called after each request with its method, the plural of its kind and the status code; 0: no answer."""
ObjectT = TypeVar("ObjectT")


class _Object(Protocol):
    """Any of the client's models of objects."""

    metadata: V1ObjectMeta | None


MERGE_PATCH = "application/merge-patch+json"
PAGE_SIZE = 500
"""Objects in one answer to a list, which bounds its memory."""
REQUEST_SECONDS = 10.0
WATCH_SECONDS = 300
"""When the API server ends a watch, so that permissions are checked again."""
_WATCH_MARGIN_SECONDS = 30
_CONNECTIONS = 16
_RETRY = RetryPolicy(first_wait=0.2, longest_wait=0.8, attempts=4)
_TRANSIENT = {408, 429, 500, 502, 503, 504}
_WATCH = "WATCH"


class ApiServerError(HmiError):
    """The API server refused a request and would refuse it again; ``code`` is the HTTP status."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.code = code


class ApiServerNotFound(ApiServerError):
    """404: there is no such object."""


class ApiServerConflict(ApiServerError):
    """409: the object exists already, or has changed since it was read. Read it and try again."""


class _Retryable(Exception):
    """A request failed in a way that may pass."""

    def __init__(self, problem: str, *, unauthorized: bool = False) -> None:
        super().__init__(problem)
        self.unauthorized = unauthorized


class BoundedApiClient(ApiClient):
    """An ``ApiClient`` whose requests time out, are repeated while a failure may pass, and are counted.

    A create that succeeded although its answer was lost is an ``ApiServerConflict`` when it is repeated.
    Raises ``NotReady`` when the API server cannot be reached or cannot answer after all attempts,
    ``ApiServerConflict``, ``ApiServerNotFound``, or ``ApiServerError`` for any other refusal.
    """

    def __init__(self, configuration: Configuration, observe: RequestObserver | None = None) -> None:
        super().__init__(configuration)
        self.user_agent = "hmi-operator"
        self._observe = observe or (lambda method, plural, code: None)

    async def call_api(
        self,
        method: str,
        url: str,
        header_params: dict[str, str] | None = None,
        body: Any = None,
        post_params: Any = None,
        _request_timeout: Any = None,
        _preload_content: bool = True,
    ) -> RESTResponse:
        """Send a request; without ``_preload_content`` it is a watch, whose body is read by the caller."""
        path = url.removeprefix(self.configuration.host)
        plural = plural_of(path)
        headers = dict(header_params or {})
        unauthorized = False

        async def send() -> RESTResponse:
            nonlocal unauthorized
            if unauthorized:  # the kubelet has replaced the token
                await load_credentials(self.configuration)
            for auth in (await self.configuration.auth_settings()).values():
                headers[auth["key"]] = auth["value"]
            try:
                response = await self._send(method, url, headers, body, stream=not _preload_content)
            except (aiohttp.ClientError, TimeoutError) as error:
                self._observe(method if _preload_content else _WATCH, plural, 0)
                raise _Retryable(f"it could not be reached ({type(error).__name__})") from error
            self._observe(method if _preload_content else _WATCH, plural, response.status)
            unauthorized = response.status == HTTPStatus.UNAUTHORIZED
            if unauthorized or response.status in _TRANSIENT:
                raise _Retryable(f"it answered {response.status} to {method} {path}")
            return response

        try:
            response = await _RETRY.run_async(send, should_retry=lambda e: isinstance(e, _Retryable))
        except _Retryable as error:
            message = f"The API server does not work now: {error}; try again."
            raise NotReady("ApiServerUnavailable", message) from error
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise _error_of(response.status, response.data or b"")
        return response

    async def _send(
        self, method: str, url: str, headers: dict[str, str], body: Any, *, stream: bool
    ) -> RESTResponse:
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        if stream:
            timeout = aiohttp.ClientTimeout(
                total=WATCH_SECONDS + _WATCH_MARGIN_SECONDS, sock_connect=REQUEST_SECONDS
            )
        response: RESTResponse = await self.rest_client.request(  # type: ignore[no-untyped-call]
            method, url, headers=dict(headers), body=body, _request_timeout=timeout
        )
        if not stream or response.status != HTTPStatus.OK:
            await response.read()  # type: ignore[no-untyped-call]
        return response


class KubernetesClient:
    """The API groups that the operator uses, over one ``BoundedApiClient``."""

    def __init__(self, api_client: ApiClient) -> None:
        self.api_client = api_client
        self.batch = BatchV1Api(api_client)
        self.coordination = CoordinationV1Api(api_client)
        self.core = CoreApi(api_client)
        self.custom_objects = CustomObjectsApi(api_client)
        self.events = EventsV1Api(api_client)


@contextlib.asynccontextmanager
async def connect(
    observe: RequestObserver | None = None, *, watches: int = 1
) -> AsyncIterator[KubernetesClient]:
    """Connect with the pod's service account, else with ``KUBECONFIG``.

    ``watches`` connections are added for those that keep theirs. Raises ``NotReady`` NoCluster.
    """
    configuration = Configuration(
        connection_pool_maxsize=_CONNECTIONS + watches, client_session_kwargs={"trust_env": False}
    )
    await load_credentials(configuration)
    async with BoundedApiClient(configuration, observe) as api_client:
        yield KubernetesClient(api_client)


async def load_credentials(configuration: Configuration) -> None:
    """Read the API server's address and the credentials. Raises ``NotReady`` NoCluster.

    In a pod, the client reads the service account's token again every minute.
    """
    try:
        load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    except ConfigException:
        try:
            await load_kube_config(  # type: ignore[no-untyped-call]
                config_file=os.environ.get("KUBECONFIG"),
                client_configuration=configuration,
                persist_config=False,
            )
        except ConfigException as error:
            message = "Neither a service account nor KUBECONFIG says where the API server is."
            raise NotReady("NoCluster", message) from error


async def find(request: Awaitable[ObjectT]) -> ObjectT | None:
    """Return what a request returns; None when there is no such object."""
    try:
        return await request
    except ApiServerNotFound:
        return None


async def list_pages(
    request: Callable[..., Awaitable[Any]], *args: Any, page_size: int = PAGE_SIZE, **selectors: Any
) -> AsyncIterator[Any]:
    """Go through a list page by page; ``request`` is a list method of one of the client's APIs."""
    token: str | None = None
    while True:
        page = await request(*args, limit=page_size, _continue=token, **selectors)
        yield page
        token = page.metadata.var_continue
        if not token:
            return


async def list_items(
    request: Callable[..., Awaitable[Any]], *args: Any, **selectors: Any
) -> AsyncIterator[Any]:
    """Go through the objects of a list, as ``list_pages`` does."""
    async for page in list_pages(request, *args, **selectors):
        for item in page.items:
            yield item


def metadata_of(stored: _Object) -> V1ObjectMeta:
    """Return the metadata of an object that the API server returned, which always has some."""
    if stored.metadata is None:
        raise ValueError("an object of the API server has no metadata")
    return stored.metadata


def micro_time(moment: datetime) -> datetime:
    """Return a moment as a MicroTime: the API server requires a fraction, which is left out where it is 0."""
    return moment if moment.microsecond else moment.replace(microsecond=1)


def plural_of(path: str) -> str:
    """Return the plural in the path of a request."""
    group_parts = 2 if path.startswith("/api/") else 3
    parts = path.partition("?")[0].strip("/").split("/")[group_parts:]
    if len(parts) > 2 and parts[0] == "namespaces":
        parts = parts[2:]
    return parts[0] if parts else ""


def _error_of(code: int, body: bytes) -> ApiServerError:
    """Return the error that a Kubernetes ``Status`` describes, or a plain one for any other body."""
    try:
        status = json.loads(body)
        reason, message = str(status["reason"]), str(status["message"])
    except (ValueError, KeyError, TypeError):
        reason, message = "Refused", f"The API server answered {code}."
    if code == HTTPStatus.NOT_FOUND:
        return ApiServerNotFound(code, reason, message)
    if code == HTTPStatus.CONFLICT:
        return ApiServerConflict(code, reason, message)
    return ApiServerError(code, reason, message)
