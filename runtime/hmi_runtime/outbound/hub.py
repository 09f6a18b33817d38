"""The model hub's client, with every connection checked by the guard."""

import contextlib
from functools import cache

import httpx2
import huggingface_hub
import huggingface_hub.constants

from hmi_runtime.outbound.guard import Guard, current_guard

_DEFAULT_PORTS = {"http": 80, "https": 443}


class GuardedTransport(httpx2.BaseTransport):
    """Sends each request, those of redirects too, to an address that the guard lets through.

    A direct connection goes to the address that was checked, under the name that was asked for: that is what
    the certificate is held against. Raises ``InvalidInput`` AddressNotAllowed and ``httpx2.TransportError``.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        # Connections are not kept: the pool knows them by address, and two names may share one.
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
    """Let ``huggingface_hub`` connect through this process's guard alone; done once, by the first caller.

    Doing it again would close the client under the downloads of other threads. Downloads by Xet are turned
    off: they connect in a library that no guard and no proxy setting reaches.
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
            f"{request.url.host} is not asked: HF_HUB_OFFLINE is set"
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
