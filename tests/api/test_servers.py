"""Listening sockets of both address families."""

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from hmi_api.servers import listening_socket

needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")


def _connects(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture
def everywhere() -> Iterator[socket.socket]:
    with closing(listening_socket("::", 0)) as listening:
        yield listening


@needs_ipv6
def test_all_addresses_include_ipv4_and_ipv6(everywhere: socket.socket) -> None:
    port = everywhere.getsockname()[1]

    assert _connects("127.0.0.1", port)
    assert _connects("::1", port)


def test_without_ipv6_all_addresses_are_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)

    with closing(listening_socket("::", 0)) as listening:
        assert listening.family == socket.AF_INET
        assert _connects("127.0.0.1", listening.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", pytest.param("::1", marks=needs_ipv6)])
def test_one_address_is_only_that_address(host: str) -> None:
    with closing(listening_socket(host, 0)) as listening:
        assert listening.getsockname()[0] in ("127.0.0.1", "::1")
        assert _connects(host, listening.getsockname()[1])


def test_an_address_in_use_is_named(everywhere: socket.socket) -> None:
    with pytest.raises(OSError, match="in use"):
        listening_socket("::", everywhere.getsockname()[1])
