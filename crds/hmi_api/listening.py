"""Listening sockets: one address, or every address of IPv4 and IPv6."""

import socket

ALL_ADDRESSES = "::"
"""Host that stands for every IPv4 and IPv6 address of the machine."""
_BACKLOG = 2048


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a TCP socket that listens on ``host`` and ``port`` (0: any free port).

    ``::`` accepts IPv4 connections too, where asyncio and uvicorn would accept IPv6 alone. It falls back to
    IPv4 on a machine without IPv6. Any other host is an address or a name of one family.

    Raises ``OSError`` when the address is in use or is not one of this machine's.
    """
    if host == ALL_ADDRESSES:
        if not socket.has_dualstack_ipv6():
            return socket.create_server(("0.0.0.0", port), backlog=_BACKLOG)  # noqa: S104
        return socket.create_server(
            (host, port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)
