"""HTTP connections to runtimes, against servers with given responses on real sockets."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from hmi_control_plane.gateway.runtime_client import (
    ConnectionBrokenError,
    HttpConnections,
    HttpResponse,
    NoConnectionError,
)

Say = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Only asyncio."""
    return "asyncio"


class Server:
    """Counts connections and requests; ``say`` writes each response."""

    def __init__(self, say: Say) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self.open = 0
        self.most_open = 0
        self.url = ""
        self._say = say

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side closes it."""
        self.connections += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                await self._say(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
        finally:
            self.open -= 1


@contextlib.asynccontextmanager
async def serving(say: Say) -> AsyncIterator[Server]:
    """Serve on a free port."""
    server = Server(say)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()


def saying(*pieces: bytes, then_close: bool = False) -> Say:
    """Return a function that writes ``pieces`` one by one."""

    async def say(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if then_close:
            writer.close()

    return say


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


@contextlib.asynccontextmanager
async def connected(limit: int = 256, idle_seconds: float = 4.0) -> AsyncIterator[HttpConnections]:
    """Make connections, closed at the end."""
    connections = HttpConnections(limit=limit, idle_seconds=idle_seconds)
    try:
        yield connections
    finally:
        await connections.close()


@pytest.mark.parametrize(
    ("pieces", "answer"),
    [
        ((OK,), HttpResponse(200, b"hi")),
        ((OK[:9], OK[9:30], OK[30:]), HttpResponse(200, b"hi")),
        ((b"HTTP/1.1 503 Away\r\ncontent-length: 0\r\n\r\n",), HttpResponse(503, b"")),
        (
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nh\r\n", b"1\r\ni\r\n0\r\n\r\n"),
            HttpResponse(200, b"hi"),
        ),
        ((b"HTTP/1.1 102 Processing\r\n\r\n", OK), HttpResponse(200, b"hi")),
    ],
)
async def test_a_response_is_read_in_every_transfer_form(
    pieces: tuple[bytes, ...], answer: HttpResponse
) -> None:
    async with serving(saying(*pieces)) as server, connected() as connections:
        for _ in range(3):
            assert await connections.post(f"{server.url}/infer", "secret", b"{}") == answer
        assert server.connections == 1
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        assert body == b"{}"
        lines = head.split(b"\r\n")
        assert lines[0] == b"POST /infer HTTP/1.1"
        assert {b"Authorization: Bearer secret", b"Content-Type: application/json"} <= set(lines)
        assert not any(line.lower().startswith(b"cookie") for line in lines)


async def test_a_kept_connection_that_was_closed_is_replaced() -> None:
    # The server closes after its answer without saying so: the next request may be the first to find out.
    async with serving(saying(OK, then_close=True)) as server, connected() as connections:
        for _ in range(5):
            assert (await connections.post(server.url, "t", b"{}")).body == b"hi"
        assert server.connections == 5


async def test_a_connection_that_the_server_will_close_is_not_kept() -> None:
    last = OK.replace(b"content", b"connection: close\r\ncontent")
    async with serving(saying(last)) as server, connected() as connections:
        for _ in range(2):
            await connections.post(server.url, "t", b"{}")
        assert server.connections == 2


async def test_a_connection_that_was_idle_for_long_is_not_used() -> None:
    async with serving(saying(OK)) as server, connected(idle_seconds=0.0) as connections:
        for _ in range(2):
            await connections.post(server.url, "t", b"{}")
        assert server.connections == 2


@pytest.mark.parametrize(
    ("pieces", "times"),
    [
        ((), 2),  # without any response is repeated, once
        ((OK[:20],), 2),
        ((OK[:-1],), 1),
        ((b"what?\r\n\r\n",), 1),
    ],
)
async def test_an_incomplete_response_is_a_broken_connection(pieces: tuple[bytes, ...], times: int) -> None:
    async with serving(saying(*pieces, then_close=True)) as server, connected() as connections:
        with pytest.raises(ConnectionBrokenError):
            await connections.post(server.url, "t", b"{}")
        assert server.connections == times


async def test_an_unrequested_response_is_not_used() -> None:
    async with serving(saying(OK + OK.replace(b"hi", b"no"))) as server, connected() as connections:
        for _ in range(2):
            assert (await connections.post(server.url, "t", b"{}")).body == b"hi"
        assert server.connections == 2


async def test_a_refused_connection_differs_from_a_broken_one() -> None:
    async with serving(saying(OK)) as server:
        url = server.url
    async with connected() as connections:
        with pytest.raises(NoConnectionError):
            await connections.post(url, "t", b"{}")


async def test_a_connect_timeout_counts_as_no_connection() -> None:
    connections = HttpConnections(connect_timeout=0.05)
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # more than wait for accept(), so that the next finds no place
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        with pytest.raises(NoConnectionError, match="timeout"):
            await connections.post(f"http://127.0.0.1:{full.getsockname()[1]}", "t", b"{}")
    await connections.close()


@pytest.mark.parametrize("url", ["", "not-a-url", "ftp://host/", "http://", "http://host:port/"])
async def test_an_invalid_url_is_an_error(url: str) -> None:
    async with connected() as connections:
        with pytest.raises(ConnectionBrokenError):
            await connections.post(url, "t", b"{}")


async def test_a_cancelled_requests_response_is_not_read_by_the_next() -> None:
    requested, proceed = asyncio.Event(), asyncio.Event()

    async def slowly(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requested.set()
        await proceed.wait()
        writer.write(OK)

    async with serving(slowly) as server, connected() as connections:
        waiting = asyncio.create_task(connections.post(server.url, "t", b"first"))
        await requested.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        proceed.set()
        assert (await connections.post(server.url, "t", b"second")).body == b"hi"
        assert server.connections == 2


async def test_no_more_connections_are_open_than_the_limit() -> None:
    async with (
        serving(saying(OK)) as first,
        serving(saying(OK)) as second,
        connected(limit=2) as connections,
    ):
        answers = await asyncio.gather(
            *(connections.post(server.url, "t", b"{}") for server in (first, second) for _ in range(10))
        )
        assert [answer.body for answer in answers] == [b"hi"] * 20
        assert first.most_open <= 2
        assert second.most_open <= 2
