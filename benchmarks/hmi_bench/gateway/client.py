"""An HTTP client with little overhead, so that it does not distort the measurement."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Target:
    """A server, and the request to send to it."""

    port: int
    path: str
    token: str
    body: bytes

    @property
    def request(self) -> bytes:
        """The request's bytes."""
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\n"
            f"authorization: Bearer {self.token}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(self.body)}\r\n\r\n"
        )
        return head.encode() + self.body


class Connection:
    """One open connection; requests go over it one after another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self._request = request

    @classmethod
    async def open(cls, target: Target) -> Self:
        """Connect to ``target``."""
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        return cls(reader, writer, target.request)

    async def send(self) -> float:
        """Send the request; return the seconds until the answer was read. Raises RuntimeError if not 200."""
        return await self.send_other(self._request)

    async def send_other(self, request: bytes) -> float:
        """Send another request, whole with its head, as ``send`` does."""
        started = time.perf_counter()
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        body = await self._reader.readexactly(int(length))
        seconds = time.perf_counter() - started
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{head.splitlines()[0].decode()}: {body[:500].decode()}")
        return seconds

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        await self._writer.wait_closed()


async def at_rate(target: Target, rate: float, requests: int) -> list[float]:
    """Send ``requests`` at ``rate`` a second, each when it is due; return their seconds.

    A request's time counts from when it was due, so that a stall delays all requests that fall into it.
    """
    free: asyncio.Queue[Connection] = asyncio.Queue()
    opened: list[Connection] = []
    seconds: list[float] = []

    async def one(due: float) -> None:
        if free.empty():
            connection = await Connection.open(target)
            opened.append(connection)
        else:
            connection = free.get_nowait()
        await connection.send()
        seconds.append(time.perf_counter() - due)
        free.put_nowait(connection)

    first = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(requests):
            due = first + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(one(due))
    for connection in opened:
        await connection.close()
    return seconds


async def one_by_one(targets: Sequence[Target], rounds: int) -> list[list[float]]:
    """Send a request to every target in turn, ``rounds`` times; return the seconds of each target."""
    connections = [await Connection.open(target) for target in targets]
    seconds: list[list[float]] = [[] for _ in targets]
    for _ in range(rounds):
        for place, connection in enumerate(connections):
            seconds[place].append(await connection.send())
    for connection in connections:
        await connection.close()
    return seconds
