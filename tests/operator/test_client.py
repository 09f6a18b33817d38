"""The control plane's client: what each kind of answer becomes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from hmi_api.bearer import BearerAuth, TokenSource
from hmi_api.errors import HmiError, InvalidInput, NotReady, error_body
from hmi_api.names import Tenant
from hmi_api.wire import RunFailure
from hmi_operator import client as client_module
from hmi_operator.client import ATTEMPTS, ControlPlaneClient

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_WAIT_SECONDS", 0.0)


def answering(answer: Callable[[httpx.Request], httpx.Response]) -> ControlPlaneClient:
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://cp")
    return ControlPlaneClient(http, "secret-token")


def refusal(status: int, code: str) -> httpx.Response:
    return httpx.Response(status, json=error_body("Do this.", "x", code=code))


async def test_the_token_and_the_path_are_sent() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(204)

    await answering(answer).ensure_tenant(Tenant("acme"))
    assert (seen[0].method, seen[0].url.path) == ("PUT", "/internal/v1/tenants/acme")
    assert seen[0].headers["authorization"] == "Bearer secret-token"


async def test_what_is_not_there_is_none() -> None:
    client = answering(lambda _: refusal(404, "NotFound"))
    assert await client.domain("a/b") is None
    assert await client.adapter("a/b") is None
    assert await client.run("r") is None
    await client.erase_domain("a/b")
    await client.fail_run("r", RunFailure(reason="X", message="m"))


async def test_failing_a_run_that_has_ended_is_nothing() -> None:
    await answering(lambda _: refusal(409, "RunFinished")).fail_run("r", RunFailure(reason="X", message="m"))


@pytest.mark.parametrize("status", [400, 409, 422])
async def test_a_refusal_keeps_its_reason_and_message(status: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        await answering(lambda _: refusal(status, "NameTaken")).ensure_tenant(Tenant("acme"))
    assert (caught.value.reason, caught.value.message) == ("NameTaken", "Do this.")


async def test_a_race_that_was_lost_is_run_again() -> None:
    answers = [refusal(409, "ConcurrentWrite"), httpx.Response(204)]
    await answering(lambda _: answers.pop(0)).ensure_tenant(Tenant("acme"))
    assert not answers


async def test_a_body_of_another_shape_is_told_by_its_code() -> None:
    with pytest.raises(InvalidInput, match="418"):
        await answering(lambda _: httpx.Response(418, text="tea")).ensure_tenant(Tenant("acme"))


async def test_a_wrong_token_is_no_fault_of_the_resource_and_is_not_repeated() -> None:
    with pytest.raises(HmiError) as caught:
        await answering(lambda _: refusal(401, "Unauthorized")).domain("a/b")
    assert not isinstance(caught.value, InvalidInput)
    assert "secret-token" not in str(caught.value)


@pytest.mark.parametrize("trouble", [503, 429, 500, "transport"])
async def test_passing_trouble_is_tried_a_few_times(trouble: Any) -> None:
    calls = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        if trouble == "transport":
            raise httpx.ConnectError("refused", request=request)
        return refusal(trouble, "Later")

    with pytest.raises(NotReady) as caught:
        await answering(answer).domain("a/b")
    assert caught.value.reason == "ControlPlaneUnavailable"
    assert calls == ATTEMPTS


async def test_what_passes_is_not_noticed() -> None:
    answers = [refusal(503, "Later"), httpx.Response(204)]
    await answering(lambda _: answers.pop(0)).ensure_tenant(Tenant("acme"))
    assert answers == []


async def test_without_a_token_the_connection_says_who_asks(tmp_path: Path) -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(204)

    file, now = tmp_path / "token", [0.0]
    file.write_text("first")
    source = TokenSource(file=file, clock=lambda: now[0])
    http = httpx.AsyncClient(
        transport=httpx.MockTransport(answer), base_url="http://cp", auth=BearerAuth(source)
    )
    client = ControlPlaneClient(http)
    await client.ensure_tenant(Tenant("acme"))
    file.write_text("second")
    now[0] = 60.0
    await client.ensure_tenant(Tenant("acme"))
    assert seen == ["Bearer first", "Bearer second"]
