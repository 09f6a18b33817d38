"""The proxy for an outbound address, from the environment variables that curl reads.

HMI's own parts call each other without a proxy: their HTTP clients do not read the environment.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from hmi_api.errors import InvalidInput

SUPPORTED_SCHEMES = ("http", "https")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_SEPARATORS = re.compile(r"[,\s]+")
_PORT = re.compile(r"(.+?):(\d{1,5})")
_BRACKETS = re.compile(r"^\[(.*)\](/\d+)?$")


@dataclass(frozen=True)
class Proxies:
    """Proxies by the scheme of the address that is called; each is an address, or empty for none."""

    http: str = ""
    https: str = ""
    exceptions: tuple[str, ...] = ()
    """Entries of ``NO_PROXY``: ``*``, names, domains, addresses and CIDR blocks, with or without port."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read ``http_proxy``, ``https_proxy``, ``all_proxy`` and ``no_proxy``, and the same in capitals.

        Small letters go before capitals. The first variable that is set decides, also when it is empty: that
        is no proxy. ``all_proxy`` is for the scheme that has no variable of its own.
        """
        found = os.environ if environment is None else environment

        def value(*names: str) -> str:
            spellings = [spelling for name in names for spelling in (name, name.upper())]
            return next((found[name].strip() for name in spellings if name in found), "")

        return cls(
            http=value("http_proxy", "all_proxy"),
            https=value("https_proxy", "all_proxy"),
            exceptions=tuple(entry for entry in _SEPARATORS.split(value("no_proxy")) if entry),
        )

    def for_url(self, url: str) -> str | None:
        """Return the address of the proxy for ``url``; None where it is called directly.

        Raises ``InvalidInput`` ProxyUnsupported for a proxy that is not an HTTP proxy.
        """
        target = urlsplit(url)
        named = self.https if target.scheme == "https" else self.http
        if not named:  # before the port, which may be invalid: the connection then fails with a message
            return None
        host, port = (target.hostname or "").rstrip("."), target.port or _DEFAULT_PORTS.get(target.scheme)
        if any(_covers(entry, host, port) for entry in self.exceptions):
            return None
        proxy = named if "://" in named else f"http://{named}"
        parts = urlsplit(proxy)
        if parts.scheme.lower() not in SUPPORTED_SCHEMES or not parts.hostname:
            raise InvalidInput(
                "ProxyUnsupported",
                f"The proxy for {target.scheme}:// addresses is of the kind {parts.scheme}://; give an HTTP "
                f"proxy in {target.scheme.upper()}_PROXY, or name {target.hostname} in NO_PROXY.",
            )
        return proxy

    def endpoints(self) -> frozenset[tuple[str, int]]:
        """Return host and port of each proxy."""
        found = set()
        for named in (self.http, self.https):
            parts = urlsplit(named if "://" in named else f"http://{named}")
            if named and parts.hostname:
                found.add((parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme, 1080)))
        return frozenset(found)


def s3_endpoint() -> str:
    """Return the address of the S3 service in the environment, as botocore reads it."""
    region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION") or "us-east-1"
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return named or f"https://s3.{region}.amazonaws.com"


def s3_proxies(proxies: Proxies) -> dict[str, str]:
    """Return botocore's ``proxies`` for the S3 service of the environment; ``InvalidInput`` as ``for_url``.

    botocore's own reading of the environment knows no blocks in ``NO_PROXY``.
    """
    endpoint = s3_endpoint()
    proxy = proxies.for_url(endpoint)
    return {urlsplit(endpoint).scheme: proxy} if proxy else {}


def _covers(entry: str, host: str, port: int | None) -> bool:
    """Return whether one entry of ``NO_PROXY`` names this host, in small letters, and port."""
    if entry == "*":
        return True
    pattern = entry.lower()
    address = _address(host)
    network = _network(pattern)
    if network is None and (with_port := _PORT.fullmatch(pattern)):
        if int(with_port.group(2)) != port:
            return False
        pattern = with_port.group(1)
        network = _network(pattern)
    if address is not None or network is not None:
        return (
            address is not None
            and network is not None
            and address.version == network.version
            and address in network
        )
    domain = pattern.removeprefix("*").strip(".")
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    bare = _BRACKETS.sub(lambda found: found[1] + (found[2] or ""), text)
    try:
        return ipaddress.ip_network(bare, strict=False)
    except ValueError:
        return None
