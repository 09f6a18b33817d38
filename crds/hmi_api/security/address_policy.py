"""The hosts that a tenant's addresses may name: data, corpora, imported adapters, base models, S3 services.

Training Jobs and runtimes run inside the cluster, so a tenant's address must not lead to what is reachable
only from inside: link-local addresses (cloud metadata), loopback, private networks, Services. The operator
validates the addresses in a spec; the process that connects validates every name, every redirect and the
address itself (``hmi_runtime.outbound``). The same tables make the NetworkPolicy of training pods.
"""

import ipaddress
import os
import re
import socket
import unicodedata
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from hmi_api.errors import InvalidInput
from hmi_api.settings import HmiSettings

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


LINK_LOCAL = _networks("169.254.0.0/16", "fe80::/10")
LOOPBACK = _networks("127.0.0.0/8", "::1/128")
PRIVATE = _networks("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
RESERVED_V4 = _networks(
    "0.0.0.0/8",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
_NOT_PUBLIC = (*LINK_LOCAL, *LOOPBACK, *PRIVATE, *RESERVED_V4)
RESERVED_V6 = _networks("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
"""All unicast addresses of the internet; ``RESERVED_V6`` lies within it."""
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""IPv4 addresses as a cluster with IPv6 alone sees them."""
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")

_METADATA_NAMES = {"metadata", "metadata.google.internal", "metadata.azure.internal", "instance-data"}
_INTERNAL_SUFFIXES = ("localhost", "local", "internal", "svc", "localdomain", "home.arpa")
_SERVICE_NAME = re.compile(r"([^.]+\.){1,3}(svc|pod)(\..+)?")
_MIN_LABELS = 2


@dataclass(frozen=True)
class AddressPolicy:
    """What may be connected to; the default lets nothing but public addresses through."""

    allowed_hosts: tuple[str, ...] = ()
    """Names, and domains as ``.example.com`` or ``*.example.com``, that may lead to private addresses."""
    allowed_networks: tuple[Network, ...] = ()
    cluster_networks: tuple[Network, ...] = ()
    """Networks of the cluster's own that are not private by their number."""
    own_machine: bool = False
    """Whether names and addresses of this machine and its network are the user's own."""

    def check_url(self, url: str) -> None:
        """Raise ``InvalidInput`` AddressNotAllowed when the host of a URL may not be called.

        What a name leads to is not looked up here: see ``check_address``.
        """
        try:
            host = urlsplit(url).hostname
        except ValueError:
            host = None
        if not host:
            raise InvalidInput("AddressMalformed", f"{without_password(url)} names no host; correct it.")
        self.check_host(host)

    def check_host(self, host: str) -> None:
        """Raise ``InvalidInput`` AddressNotAllowed when a host may not be called by this name or address."""
        name = normal_host(host)
        address = ip_of(name)
        if address is not None:
            self.check_address(address, name)
        elif self._is_internal(name) and not self._allows_host(name):
            raise _refused(host, "a name of the cluster's or this machine's own")

    def check_address(self, address: Ip, host: str) -> None:
        """Raise ``InvalidInput`` AddressNotAllowed when ``host`` leads to this address and must not."""
        kind = self._kind(embedded(address), normal_host(host))
        if kind:
            raise _refused(host, kind)

    def allows(self, address: Ip) -> bool:
        """Return whether an address may be called whatever its name."""
        return self._kind(embedded(address), "") is None

    def _kind(self, address: Ip, host: str) -> str | None:
        """Return what an address is that may not be called; None when it may."""
        if _within(address, self.allowed_networks):
            return None
        if _within(address, LINK_LOCAL):
            return "a link-local address"
        listed = self._allows_host(host)
        if _within(address, LOOPBACK):
            return None if self.own_machine else "a loopback address"
        if _within(address, PRIVATE):
            return None if listed or self.own_machine else "a private address"
        if _within(address, self.cluster_networks):
            return None if listed else "an address of the cluster's own"
        return None if is_public(address) else "a reserved address"

    def _is_internal(self, name: str) -> bool:
        # A metadata service is refused on the user's own machine, too.
        return name in _METADATA_NAMES or (not self.own_machine and _is_internal(name))

    def _allows_host(self, host: str) -> bool:
        for allowed in self.allowed_hosts:
            pattern = normal_host(allowed.removeprefix("*"))
            if host == pattern or (pattern.startswith(".") and host.endswith(pattern)):
                return True
        return False


class AddressPolicySettings(HmiSettings):
    """Which addresses tenants may name; every field is also an ``HMI_`` environment variable."""

    data_addresses: Literal["machine", "cluster"] = Field(
        default="machine",
        description="machine: files, loopback and private addresses are the user's own. "
        "cluster: public addresses and those listed.",
    )
    data_allowed_hosts: tuple[str, ...] = Field(
        default=(), description="Hosts that may have private addresses, such as an in-house S3 service."
    )
    data_allowed_networks: tuple[Network, ...] = Field(
        default=(), description="CIDR blocks that may be read from though they are not public."
    )
    data_cluster_networks: tuple[Network, ...] = Field(
        default=(), description="CIDR blocks of the cluster's pods and Services, where they are not private."
    )

    def address_policy(self) -> AddressPolicy:
        """Return the policy. On a cluster the API server's own address counts as the cluster's."""
        own_machine = self.data_addresses == "machine"
        known = ip_of(os.environ.get("KUBERNETES_SERVICE_HOST", ""))
        api_server = () if known is None or own_machine else (ipaddress.ip_network(known),)
        return AddressPolicy(
            self.data_allowed_hosts,
            self.data_allowed_networks,
            (*self.data_cluster_networks, *api_server),
            own_machine,
        )


def normal_host(host: str) -> str:
    """Return a host as the network reads it: small letters, no brackets, no last dot, no look-alike signs."""
    name = unicodedata.normalize("NFKC", host).strip("[]").replace("\u3002", ".").lower()
    return name.rstrip(".")


def ip_of(host: str) -> Ip | None:
    """Return the address that a host is, in any form that a resolver takes: 127.1, 0x7f000001, 2130706433."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def embedded(address: Ip) -> Ip:
    """Return the IPv4 address that an IPv6 one leads to, else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        plain = ipaddress.IPv6Address(int(address))  # without a zone such as %eth0
        is_one = int(plain) <= 1  # :: and ::1
        if not is_one and any(plain in network for network in (_MAPPED, NAT64, _COMPATIBLE)):
            return ipaddress.IPv4Address(int(plain) & 0xFFFFFFFF)
        return plain
    return address


def is_public(address: Ip) -> bool:
    """Return whether an address is of the internet and not reserved for anything."""
    if isinstance(address, ipaddress.IPv6Address):
        return address in PUBLIC_V6 and not _within(address, RESERVED_V6)
    return not _within(address, _NOT_PUBLIC)


def not_public(version: Literal[4, 6]) -> tuple[Network, ...]:
    """Return the networks that ``is_public`` refuses: all of IPv4's, and those within ``PUBLIC_V6``."""
    if version == 6:
        return RESERVED_V6
    return tuple(network for network in _NOT_PUBLIC if network.version == version)


def without_password(url: str) -> str:
    """Return a URL for a message, without user and password."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}" if separator else url


def _is_internal(name: str) -> bool:
    labels = name.split(".")
    return (
        len(labels) < _MIN_LABELS
        or any(name == suffix or name.endswith(f".{suffix}") for suffix in _INTERNAL_SUFFIXES)
        or _SERVICE_NAME.fullmatch(name) is not None
    )


def _within(address: Ip, networks: tuple[Network, ...]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _refused(host: str, kind: str) -> InvalidInput:
    return InvalidInput(
        "AddressNotAllowed",
        f"{host} is, or leads to, {kind}, which no data may be read from. Give a public address, or ask the "
        "administrator to list the host or network (chart values data.allowedHosts, data.allowedNetworks).",
    )
