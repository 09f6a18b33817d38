"""The client of the internal API: results and errors for each kind of answer."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from fake_time import install_fake_time

from hmi_api.errors import HmiError, InvalidInput, NotReady, error_body
from hmi_api.internal.client import FEW_ATTEMPTS, ControlPlaneClient
from hmi_api.internal.runs import RunFailure
from hmi_api.names import Tenant
from hmi_api.security.bearer import TokenSource

pytestmark = pytest.mark.anyio

TOKEN = "secret-token"

Answer = Callable[[web.Request], web.StreamResponse]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake_time(monkeypatch)


@asynccontextmanager
async def answering(answer: Answer, token: str | TokenSource = TOKEN) -> AsyncIterator[ControlPlaneClient]:
    """Give a client of a server that answers so."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return answer(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    async with TestServer(app) as server, ControlPlaneClient(str(server.make_url("/")), token) as client:
        yield client


def refusal(status: int, code: str) -> web.Response:
    return web.json_response(error_body("Do this.", "x", code=code), status=status)


def done(_: web.Request) -> web.Response:
    return web.Response(status=204)


async def test_the_token_and_the_path_are_sent() -> None:
    seen: list[tuple[str, str, str]] = []

    def answer(request: web.Request) -> web.Response:
        seen.append((request.method, request.path, request.headers["Authorization"]))
        return web.Response(status=204)

    async with answering(answer) as client:
        await client.ensure_tenant(Tenant("acme"))
    assert seen == [("PUT", "/internal/v1/tenants/acme", f"Bearer {TOKEN}")]


async def test_a_missing_resource_is_none() -> None:
    async with answering(lambda _: refusal(404, "NotFound")) as client:
        assert await client.domain("a/b") is None
        assert await client.adapter("a/b") is None
        assert await client.run("r") is None
        await client.delete("Domain", "a/b")
        await client.fail_run("r", RunFailure(reason="X", message="m"))


async def test_failing_an_ended_run_does_nothing() -> None:
    async with answering(lambda _: refusal(409, "RunFinished")) as client:
        await client.fail_run("r", RunFailure(reason="X", message="m"))


@pytest.mark.parametrize("status", [400, 409, 422])
async def test_a_refusal_keeps_its_reason_and_message(status: int) -> None:
    async with answering(lambda _: refusal(status, "NameTaken")) as client:
        with pytest.raises(InvalidInput) as caught:
            await client.ensure_tenant(Tenant("acme"))
    assert (caught.value.reason, caught.value.message) == ("NameTaken", "Do this.")


async def test_a_lost_write_race_is_retried() -> None:
    answers = [refusal(409, "ConcurrentWrite"), web.Response(status=204)]
    async with answering(lambda _: answers.pop(0)) as client:
        await client.ensure_tenant(Tenant("acme"))
    assert not answers


async def test_an_error_without_a_body_is_reported_by_its_status() -> None:
    async with answering(lambda _: web.Response(status=418, text="tea")) as client:
        with pytest.raises(InvalidInput, match="418"):
            await client.ensure_tenant(Tenant("acme"))


async def test_redirects_are_not_followed() -> None:
    seen: list[str] = []

    def answer(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with answering(answer) as client:
        with pytest.raises(InvalidInput, match="307"):
            await client.ensure_tenant(Tenant("acme"))
    assert seen == ["/internal/v1/tenants/acme"]


async def test_a_refused_token_is_not_an_invalid_input_and_is_not_retried() -> None:
    seen: list[str] = []

    def answer(request: web.Request) -> web.Response:
        seen.append(request.path)
        return refusal(401, "Unauthorized")

    async with answering(answer) as client:
        with pytest.raises(HmiError) as caught:
            await client.domain("a/b")
    assert not isinstance(caught.value, InvalidInput)
    assert TOKEN not in str(caught.value)
    assert len(seen) == 1


@pytest.mark.parametrize("status", [503, 429, 500])
async def test_temporary_errors_are_retried_a_few_times(status: int) -> None:
    calls = 0

    def answer(_: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        return refusal(status, "Later")

    async with answering(answer) as client:
        with pytest.raises(NotReady, match=str(status)) as caught:
            await client.domain("a/b")
    assert caught.value.reason == "ControlPlaneUnavailable"
    assert calls == FEW_ATTEMPTS.attempts


async def test_an_unreachable_control_plane_is_not_ready_and_the_error_has_no_token() -> None:
    async with answering(done) as client:
        await client.ensure_tenant(Tenant("acme"))
        address = client.url
    async with ControlPlaneClient(address, TOKEN) as client:
        with pytest.raises(NotReady, match="could not be reached") as caught:
            await client.domain("a/b")
    assert caught.value.reason == "ControlPlaneUnavailable"
    assert TOKEN not in str(caught.value)


async def test_a_broken_connection_is_replaced() -> None:
    calls = 0

    def answer(request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        if calls == 1:
            assert request.transport is not None
            request.transport.close()
        return web.Response(status=204)

    async with answering(answer) as client:
        await client.ensure_tenant(Tenant("acme"))
    assert calls == 2


async def test_temporary_errors_are_hidden() -> None:
    answers = [refusal(503, "Later"), web.Response(status=204)]
    async with answering(lambda _: answers.pop(0)) as client:
        await client.ensure_tenant(Tenant("acme"))
    assert answers == []


async def test_a_token_in_a_file_is_read_again(tmp_path: Path) -> None:
    seen: list[str] = []

    def answer(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"])
        return web.Response(status=204)

    file, now = tmp_path / "token", [0.0]
    file.write_text("first")
    async with answering(answer, TokenSource(file=file, clock=lambda: now[0])) as client:
        await client.ensure_tenant(Tenant("acme"))
        file.write_text("second")
        now[0] = 60.0
        await client.ensure_tenant(Tenant("acme"))
    assert seen == ["Bearer first", "Bearer second"]


async def test_an_unreadable_token_is_retried(tmp_path: Path) -> None:
    now = [0.0]
    source = TokenSource(file=tmp_path / "token", clock=lambda: now[0])
    async with answering(done, source) as client:
        with pytest.raises(NotReady, match="token"):
            await client.ensure_tenant(Tenant("acme"))
        (tmp_path / "token").write_text("first")
        now[0] = 60.0
        await client.ensure_tenant(Tenant("acme"))
