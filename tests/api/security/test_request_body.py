"""Request bodies are limited in bytes, packed and unpacked, and in time."""

import asyncio
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from hmi_api.security.request_body import BodyLimit, Message, Receive, RequestBodyMiddleware, Scope, Send

LIMIT = 1000


@dataclass
class Refused(Exception):
    """The error that the middleware is configured to raise."""

    status: int
    message: str


class Body:
    """Gives parts of a body; ``None`` is one that never comes."""

    def __init__(self, parts: Sequence[bytes | None], *, ends: bool = True) -> None:
        self.left = list(parts)
        self.ends = ends
        self.received = 0

    async def receive(self) -> Message:
        self.received += 1
        if not self.left:
            return {"type": "http.disconnect"}
        part = self.left.pop(0)
        if part is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": part, "more_body": bool(self.left) or not self.ends}


def read(body: Body, limit: BodyLimit, **headers: str) -> bytes:
    """Return the body that a handler reads behind the middleware."""
    found = bytearray()

    async def handler(_scope: Scope, receive: Receive, _send: Send) -> None:
        more = True
        while more:
            message = await receive()
            assert message["type"] == "http.request"
            found.extend(message["body"])
            more = message["more_body"]

    async def send(_message: Message) -> None:
        raise AssertionError("the middleware answers nothing itself")

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {"type": "http", "path": "/", "headers": named}
    app = RequestBodyMiddleware(handler, default=limit, refuse=Refused)
    asyncio.run(app(scope, body.receive, send))
    return bytes(found)


def refused(body: Body, limit: BodyLimit, **headers: str) -> int:
    """Return the status that a body is refused with."""
    with pytest.raises(Refused) as caught:
        read(body, limit, **headers)
    return caught.value.status


def test_a_body_within_bounds_is_read_unchanged() -> None:
    assert read(Body([b"a" * 500, b"b" * 500]), BodyLimit(LIMIT)) == b"a" * 500 + b"b" * 500


def test_a_long_body_is_refused_announced_or_not() -> None:
    announced = Body([b"x"])
    assert refused(announced, BodyLimit(LIMIT), content_length="1001") == 413
    assert announced.received == 0
    assert refused(Body([b"x" * 600, b"x" * 600]), BodyLimit(LIMIT)) == 413


@pytest.mark.parametrize("parts", [[None], [b"x", None], [b"", b"", None]])
def test_a_missing_body_is_408(parts: list[bytes | None]) -> None:
    assert refused(Body(parts), BodyLimit(LIMIT, seconds=0.05)) == 408


class Dripping(Body):
    """Gives a byte at a time, each after a while, without end."""

    async def receive(self) -> Message:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}


def test_a_slow_body_is_408() -> None:
    assert refused(Dripping([]), BodyLimit(LIMIT, seconds=0.2)) == 408


def test_a_streamed_body_has_a_time_limit_for_each_part() -> None:
    limit = BodyLimit(20, seconds=0.2, each_part=True)
    assert refused(Dripping([]), limit) == 413  # after more than twice the time
    assert refused(Body([b"x", None]), limit) == 408


def test_nothing_is_limited_after_the_body() -> None:
    body = Body([b"x"])

    async def handler(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        body.left = [None]  # waiting for the caller to disconnect has no time limit
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receive(), 0.2)

    app = RequestBodyMiddleware(handler, default=BodyLimit(LIMIT, seconds=0.05), refuse=Refused)
    scope: dict[str, Any] = {"type": "http", "path": "/", "headers": []}
    asyncio.run(app(scope, body.receive, body.receive))  # type: ignore[arg-type]  # nothing is sent


PACKED = BodyLimit(LIMIT, gzip=True)


def pieces(data: bytes, size: int) -> list[bytes | None]:
    """Return ``data`` in parts."""
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_gzip_is_undone(size: int) -> None:
    text = bytes(range(250)) * 4
    assert read(Body(pieces(gzip.compress(text), size)), PACKED, content_encoding="gzip") == text
    assert read(Body(pieces(gzip.compress(b""), size)), PACKED, content_encoding="GZIP") == b""


def test_a_small_body_that_unpacks_to_a_large_one_is_refused() -> None:
    bomb = gzip.compress(bytes(LIMIT * 200))
    assert len(bomb) < LIMIT
    assert refused(Body([bomb]), PACKED, content_encoding="gzip") == 413
    assert refused(Body(pieces(bomb, 5)), PACKED, content_encoding="gzip") == 413
    assert refused(Body([gzip.compress(bytes(LIMIT + 1))]), PACKED, content_encoding="gzip") == 413
    assert read(Body([gzip.compress(bytes(LIMIT))]), PACKED, content_encoding="gzip") == bytes(LIMIT)


def test_invalid_gzip_is_400() -> None:
    whole = gzip.compress(b"hello")
    for wrong in (b"hello", whole[:-3], whole + b"x", whole + whole, b""):
        assert refused(Body([wrong]), PACKED, content_encoding="gzip") == 400


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "x"])
def test_an_unknown_encoding_is_415(encoding: str) -> None:
    assert refused(Body([b"x"]), PACKED, content_encoding=encoding) == 415


def test_gzip_is_415_where_it_is_not_accepted() -> None:
    assert refused(Body([gzip.compress(b"x")]), BodyLimit(LIMIT), content_encoding="gzip") == 415
    assert read(Body([b"x"]), BodyLimit(LIMIT), content_encoding="identity") == b"x"
