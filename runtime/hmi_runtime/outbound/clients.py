"""Clients whose every connection is checked by the guard: fsspec file systems and the model hub."""

import contextlib
import os
import socket
from functools import cache
from typing import Any

import aiohttp
import fsspec
import httpx2
import huggingface_hub
import huggingface_hub.constants
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict
from yarl import URL

from hmi_api.errors import InvalidInput
from hmi_api.resources.data_addresses import scheme_of
from hmi_api.security.proxies import s3_endpoint, s3_proxies
from hmi_runtime.outbound.guard import Guard, current_guard

_CONNECT_SECONDS = 30.0
_READ_SECONDS = 60.0
"""Longest time without a byte; after it, reading is retried from where it stopped."""
_CREDENTIAL_ADDRESSES = {
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "{}",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "http://169.254.170.2{}",
}
"""Addresses from which botocore fetches credentials with its own client, by variable."""
_DEFAULT_PORTS = {"http": 80, "https": 443}


def open_address(uri: str) -> tuple[Any, str]:
    """Return the file system of a data address, and the path in it.

    On a user's own machine any address that fsspec knows is allowed; elsewhere http, https, s3 and files
    below the mounts. Raises ``InvalidInput`` AddressNotAllowed, and fsspec's own errors.
    """
    guard = current_guard()
    scheme = scheme_of(uri)
    options: dict[str, Any] = {}
    if scheme in ("http", "https"):
        guard.proxy_for(uri)  # refuse at once what can be refused without a connection
        options = _http_options(guard)
    elif scheme == "s3":
        options = _s3_options(guard)
    elif guard.policy.own_machine:
        if "::" in uri:
            options = {"http": _http_options(guard), "https": _http_options(guard)}
    else:
        if scheme not in (None, "file") or "::" in uri:
            raise InvalidInput(
                "AddressNotAllowed",
                f"{uri} cannot be read here. Give s3://, https://, configmap://NAME/KEY or pvc://CLAIM/PATH.",
            )
        guard.check_file(uri.removeprefix("file://"))
    return fsspec.core.url_to_fs(uri, **options)  # type: ignore[no-any-return] # fsspec has no types


class GuardedResolver(AbstractResolver):
    """Resolves hosts for aiohttp, and returns only the addresses that the guard allows."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses; raises ``InvalidInput`` AddressNotAllowed and ``OSError``."""
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in await self._guard.addresses_async(host, port)
        ]

    async def close(self) -> None:
        """Do nothing: there is no state."""


def connector_options(guard: Guard) -> dict[str, Any]:
    """Return arguments with which aiohttp's connector connects only to what the guard allows.

    aiohttp does not call the resolver for hosts that are addresses, so each socket is checked too.
    """

    def checked_socket(address_info: Any) -> socket.socket:
        family, type_, protocol, _, (host, port, *_) = address_info
        guard.check_connection(host, port)
        return socket.socket(family, type_, protocol)

    return {"resolver": GuardedResolver(guard), "socket_factory": checked_socket}


def _http_options(guard: Guard) -> dict[str, Any]:
    async def through_proxy(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Check each request, redirects included, and set its proxy."""
        proxy = guard.proxy_for(str(request.url))
        if proxy is not None:
            address = URL(proxy)
            credentials = CIMultiDict[str]()
            if address.user:
                login = aiohttp.encode_basic_auth(address.user, address.password or "")
                credentials["Proxy-Authorization"] = login
            request.update_proxy(address.with_user(None), None, credentials)
            if not request.is_ssl():  # only then does the proxy itself read the request's headers
                request.headers.update(credentials)
        return await handler(request)

    async def session(**options: Any) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(**connector_options(guard)),
            middlewares=(through_proxy,),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS),
            trust_env=False,
            **options,
        )

    # fsspec caches file systems with their sessions; a later guard may allow less, so the cache is skipped.
    return {"get_client": session, "skip_instance_cache": True}


def _s3_options(guard: Guard) -> dict[str, Any]:
    # Imported here: the driver of S3 is an extra.
    from aiobotocore.config import AioConfig  # noqa: PLC0415
    from aiobotocore.session import AioSession  # noqa: PLC0415

    _check_credential_addresses(guard)
    guard.policy.check_url(s3_endpoint())
    connecting = {"connector_args": connector_options(guard), "proxies": s3_proxies(guard.proxies)}
    session = AioSession()
    session.set_default_client_config(AioConfig(**connecting))  # also for the client that fetches credentials
    return {"session": session, "config_kwargs": connecting, "skip_instance_cache": True}


def _check_credential_addresses(guard: Guard) -> None:
    if guard.policy.own_machine:
        return
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"  # credentials of the node are not the tenant's to use
    for variable, address in _CREDENTIAL_ADDRESSES.items():
        if value := os.environ.get(variable):
            guard.policy.check_url(address.format(value))


class GuardedTransport(httpx2.BaseTransport):
    """Sends each request, redirects included, to an address that the guard allows.

    A direct connection goes to the address that was checked; the certificate is checked against the host's
    name. Raises ``InvalidInput`` AddressNotAllowed and ``httpx2.TransportError``.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        # Connections are not kept: the pool finds them by address, and two names may share one.
        self._direct = httpx2.HTTPTransport(trust_env=True, limits=httpx2.Limits(max_keepalive_connections=0))
        self._proxied: dict[str, httpx2.HTTPTransport] = {}

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request by its proxy, or to the first of its host's addresses that answers."""
        proxy = self._guard.proxy_for(str(request.url))
        if proxy is not None:
            if proxy not in self._proxied:
                self._proxied[proxy] = httpx2.HTTPTransport(proxy=proxy, trust_env=True)
            return self._proxied[proxy].handle_request(request)
        host = request.url.host
        port = request.url.port or _DEFAULT_PORTS[request.url.scheme]
        try:
            *others, last = self._guard.addresses(host, port)
        except OSError as error:
            raise httpx2.ConnectError(f"{host} is not known", request=request) from error
        for address in others:
            with contextlib.suppress(httpx2.ConnectError, httpx2.ConnectTimeout):
                return self._direct.handle_request(_sent_to(request, address))
        return self._direct.handle_request(_sent_to(request, last))

    def close(self) -> None:
        """Close all connections."""
        for transport in (self._direct, *self._proxied.values()):
            transport.close()


@cache
def use_guarded_client() -> None:
    """Make ``huggingface_hub`` connect only through this process's guard; done once, by the first caller.

    Doing it again would close the client that other threads download with. Xet downloads are disabled: that
    library ignores the guard and the proxy settings.
    """
    huggingface_hub.constants.HF_HUB_DISABLE_XET = True
    huggingface_hub.set_client_factory(lambda: _client(current_guard()))


def _client(guard: Guard) -> httpx2.Client:
    return httpx2.Client(
        transport=GuardedTransport(guard),
        event_hooks={"request": [_refuse_offline]},
        follow_redirects=True,
        timeout=httpx2.Timeout(60.0, connect=30.0),
        trust_env=False,
    )


def _refuse_offline(request: httpx2.Request) -> None:
    if huggingface_hub.constants.is_offline_mode():
        raise huggingface_hub.errors.OfflineModeIsEnabled(
            f"HF_HUB_OFFLINE is set, so {request.url.host} is not called"
        )


def _sent_to(request: httpx2.Request, address: str) -> httpx2.Request:
    """Return the request with a checked address in its URL; host header and TLS name stay."""
    return httpx2.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": request.url.host},
    )
