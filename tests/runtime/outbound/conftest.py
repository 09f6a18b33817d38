"""Fixtures of outbound connections. Tests connect to loopback only, and resolvers are fakes."""

import asyncio
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import trustme
from recording_proxy import RecordingProxy, name_proxies, recording_proxy
from support_outbound import Install, Server

from hmi_api.security.address_policy import AddressPolicy
from hmi_runtime.outbound import guard as guards
from hmi_runtime.outbound.guard import Guard
from hmi_runtime.training import resumable_io


@pytest.fixture
def server() -> Iterator[Server]:
    yield from Server().serve()


@pytest.fixture
def proxy() -> Iterator[RecordingProxy]:
    with recording_proxy() as made:
        yield made


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that are connected to; a connection to anything but loopback fails before it is made."""
    made: list[str] = []

    def record(address: Any) -> None:
        made.append(str(address[0]))
        if not ip_address(address[0]).is_loopback:
            raise AssertionError(f"would connect to {address}")

    connect, sock_connect = socket.socket.connect, asyncio.selector_events.BaseSelectorEventLoop.sock_connect

    def connect_recorded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            record(address)
        connect(self, address)

    async def connect_recorded_async(self: Any, sock: socket.socket, address: Any) -> None:
        record(address)
        await sock_connect(self, sock, address)

    monkeypatch.setattr(socket.socket, "connect", connect_recorded)
    monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_connect", connect_recorded_async)
    return made


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Give the process a guard with a fake resolver."""

    def installed(
        policy: AddressPolicy,
        names: dict[str, Sequence[str]] | None = None,
        *,
        proxies: dict[str, str] | None = None,
        mounts: Path | None = None,
    ) -> Guard:
        def lookup(host: str, port: int) -> Sequence[str]:
            assert names is not None, f"{host} was looked up"
            if host not in names:
                raise OSError(f"no such name: {host}")
            return names[host]

        name_proxies(monkeypatch, proxies or {})
        monkeypatch.setattr(guards, "process", guards.Process(policy, mounts, lookup))
        monkeypatch.setattr(resumable_io, "_RETRY", replace(resumable_io._RETRY, attempts=1))
        return guards.current_guard()

    return installed


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.LeafCert:
    """A certificate for data.example, from an authority that this process trusts."""
    authority = trustme.CA()
    bundle = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    return authority.issue_cert("data.example")


@pytest.fixture
def secure_server(certificate: trustme.LeafCert) -> Iterator[Server]:
    """A server over TLS."""
    made = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    made.http.socket = context.wrap_socket(made.http.socket, server_side=True)
    yield from made.serve()
