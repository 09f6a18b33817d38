"""The guard that checks names, addresses and proxies before a library connects to the network.

A name is resolved once. Its addresses are checked and the connection goes to a checked one: resolving again
could give another address (DNS rebinding). Proxies belong to the administrator and are not checked; requests
through them are checked by host name.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hmi_api.errors import HmiError, InvalidInput
from hmi_api.security.address_policy import AddressPolicy, Ip, ip_of, normal_host
from hmi_api.security.proxies import Proxies

Lookup = Callable[[str, int], Sequence[str]]
"""Returns the addresses of a host and port; raises ``OSError`` if there are none."""


def look_up(host: str, port: int) -> list[str]:
    """Return the addresses of a host from the system's resolver, in its order, without duplicates."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class Guard:
    """Checks connections. Thread-safe: its only state is the set of addresses that it has allowed.

    ``mounts`` is the only folder from which files may be read, except on a user's own machine.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        proxies: Proxies,
        *,
        mounts: Path | None = None,
        lookup: Lookup = look_up,
    ) -> None:
        self.policy = policy
        self.proxies = proxies
        self.mounts = mounts
        self._lookup = lookup
        self._proxy_endpoints = frozenset((normal_host(host), port) for host, port in proxies.endpoints())
        self._allowed: set[tuple[Ip, int]] = set()
        for host, port in self._proxy_endpoints:
            if (address := ip_of(host)) is not None:
                self._allowed.add((address, port))

    def proxy_for(self, url: str) -> str | None:
        """Return the proxy for ``url``; None to connect directly.

        Raises ``InvalidInput`` AddressNotAllowed or ProxyUnsupported.
        """
        self.policy.check_url(url)
        return self.proxies.for_url(url)

    def addresses(self, host: str, port: int) -> list[str]:
        """Resolve a host, which may be a proxy, and return the allowed addresses.

        Raises ``InvalidInput`` AddressNotAllowed if none is allowed, and ``OSError`` for an unknown host.
        """
        name = normal_host(host)
        is_proxy = (name, port) in self._proxy_endpoints
        if not is_proxy:
            self.policy.check_host(name)
        allowed, refused = [], None
        for text in self._lookup(host, port):
            address = ipaddress.ip_address(text)
            try:
                if not is_proxy:
                    self.policy.check_address(address, name)
            except InvalidInput as error:
                refused = error
                continue
            self._allowed.add((address, port))
            allowed.append(text)
        if not allowed:
            raise refused or OSError(f"{host} has no address")
        return allowed

    async def addresses_async(self, host: str, port: int) -> list[str]:
        """Do the same without blocking the event loop."""
        return await asyncio.to_thread(self.addresses, host, port)

    def check_connection(self, address: str, port: int) -> None:
        """Raise ``InvalidInput`` AddressNotAllowed unless the policy or ``addresses`` allowed the address."""
        found = ipaddress.ip_address(address)
        if (found, port) not in self._allowed and not self.policy.allows(found):
            self.policy.check_address(found, address)

    def check_file(self, path: str) -> None:
        """Raise ``InvalidInput`` AddressNotAllowed for a file or folder that may not be read."""
        if self.policy.own_machine:
            return
        if self.mounts is None or not Path(path).resolve().is_relative_to(self.mounts.resolve()):
            raise InvalidInput(
                "AddressNotAllowed",
                f"{path} is a file inside the training pod. Give s3://, https://, configmap://NAME/KEY or "
                "pvc://CLAIM/PATH.",
            )


GUARD_REASONS = frozenset({"AddressNotAllowed", "AddressMalformed", "ProxyUnsupported"})
"""Reasons of the guard's errors."""


@dataclass
class Process:
    """What this process may connect to; without ``configure``, as on a user's own machine."""

    policy: AddressPolicy
    mounts: Path | None = None
    lookup: Lookup = look_up


process = Process(AddressPolicy(own_machine=True))


def configure(policy: AddressPolicy, *, mounts: Path | None = None) -> None:
    """Set what this process may connect to, and the folder from which it may read files."""
    process.policy, process.mounts = policy, mounts


def current_guard() -> Guard:
    """Return a guard for this process, with the proxies in the environment."""
    return Guard(process.policy, Proxies.from_environment(), mounts=process.mounts, lookup=process.lookup)


def find_guard_error(error: BaseException) -> HmiError | None:
    """Return the guard's error that a library has wrapped in its own; None if there is none."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, HmiError) and one.reason in GUARD_REASONS:
            return one
        waiting += [one.__cause__, one.__context__]
    return None
