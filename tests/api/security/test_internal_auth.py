"""Authentication of callers: the static token, service accounts, and TokenReview over HTTP."""

import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hmi_api.errors import NotReady
from hmi_api.security.bearer import BearerAuth, TokenSource
from hmi_api.security.internal_auth import (
    Caller,
    InternalAuthSettings,
    Role,
    ServiceAccounts,
    StaticTokenAuthenticator,
    TokenReviewer,
)

pytestmark = pytest.mark.anyio

ACCOUNTS = ServiceAccounts(
    operator="system:serviceaccount:hmi-system:hmi-operator",
    runtime="system:serviceaccount:hmi-system:hmi-runtime",
    gateway="system:serviceaccount:hmi-system:hmi-gateway",
)


class Clock:
    """A clock that only the test moves, in seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


def token_that_expires(at: float) -> str:
    """Return what looks like a service-account token."""
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({}, {"exp": at})
    ]
    return ".".join([*parts, "signature"])


@pytest.fixture
def clock() -> Clock:
    return Clock(time.time())


@pytest.fixture
async def reviewer(token_reviews: Any, clock: Clock) -> AsyncIterator[TokenReviewer]:
    made = TokenReviewer(
        token_reviews.url,
        TokenSource("own-token"),
        ACCOUNTS,
        "hmi-control-plane",
        max_cached=3,
        clock=clock,
    )
    yield made
    await made.close()


@pytest.mark.parametrize(
    ("username", "caller"),
    [
        ("system:serviceaccount:hmi-system:hmi-operator", Caller(Role.OPERATOR)),
        ("system:serviceaccount:hmi-system:hmi-runtime", Caller(Role.RUNTIME)),
        ("system:serviceaccount:hmi-system:hmi-gateway", Caller(Role.GATEWAY)),
        ("system:serviceaccount:acme:default", Caller(Role.TRAINER, "acme")),
        ("system:serviceaccount:hmi-system:default", None),
        ("system:serviceaccount:acme:hmi-operator", None),
        ("system:serviceaccount::default", None),
        ("system:serviceaccount:acme:default:x", None),
        ("acme:default", None),
        ("kubernetes-admin", None),
        ("", None),
    ],
)
def test_the_account_decides_the_role(username: str, caller: Caller | None) -> None:
    assert ACCOUNTS.caller(username) == caller


def test_a_trainer_may_access_only_its_own_namespace() -> None:
    trainer = Caller(Role.TRAINER, "acme")
    assert trainer.may_work_in("acme")
    assert not trainer.may_work_in("bolt")
    assert Caller(Role.OPERATOR).may_work_in("bolt")


async def test_the_static_token_grants_every_role_and_others_none() -> None:
    check = StaticTokenAuthenticator("sixteen-characters")
    caller = await check.authenticate("sixteen-characters")
    assert caller is not None
    assert caller.may_act_as((Role.RUNTIME,))
    assert await check.authenticate("something else") is None
    assert await check.authenticate("ü") is None


async def test_an_accepted_token_is_cached_for_a_minute(
    reviewer: TokenReviewer, token_reviews: Any, clock: Clock
) -> None:
    token_reviews.accounts["t"] = ACCOUNTS.operator
    for _ in range(2):
        assert await reviewer.authenticate("t") == Caller(Role.OPERATOR)
    assert token_reviews.tokens == ["t"]
    assert token_reviews.authorizations == ["Bearer own-token"]
    clock.seconds += 61
    del token_reviews.accounts["t"]
    assert await reviewer.authenticate("t") is None


async def test_a_token_is_not_cached_beyond_its_expiry(
    reviewer: TokenReviewer, token_reviews: Any, clock: Clock
) -> None:
    token = token_that_expires(clock.seconds + 10)
    token_reviews.accounts[token] = ACCOUNTS.runtime
    assert await reviewer.authenticate(token) == Caller(Role.RUNTIME)
    clock.seconds += 11
    await reviewer.authenticate(token)
    assert len(token_reviews.tokens) == 2


async def test_an_unknown_token_is_cached_for_seconds_only(
    reviewer: TokenReviewer, token_reviews: Any, clock: Clock
) -> None:
    for _ in range(3):
        assert await reviewer.authenticate("new") is None
    assert len(token_reviews.tokens) == 1
    token_reviews.accounts["new"] = ACCOUNTS.gateway
    clock.seconds += 6
    assert await reviewer.authenticate("new") == Caller(Role.GATEWAY)


async def test_a_token_for_another_audience_is_unknown(reviewer: TokenReviewer, token_reviews: Any) -> None:
    token_reviews.accounts["t"] = ACCOUNTS.operator
    token_reviews.audiences["t"] = ["https://kubernetes.default.svc"]
    assert await reviewer.authenticate("t") is None


async def test_the_cache_is_bounded(reviewer: TokenReviewer, token_reviews: Any) -> None:
    token_reviews.accounts |= {f"t{number}": ACCOUNTS.operator for number in range(5)}
    for number in range(5):
        await reviewer.authenticate(f"t{number}")
    await reviewer.authenticate("t4")
    assert len(token_reviews.tokens) == 5
    await reviewer.authenticate("t0")
    assert len(token_reviews.tokens) == 6


async def test_a_very_long_token_is_not_reviewed(reviewer: TokenReviewer, token_reviews: Any) -> None:
    assert await reviewer.authenticate("x" * 20_000) is None
    assert await reviewer.authenticate("") is None
    assert token_reviews.tokens == []


@pytest.mark.parametrize("status", [403, 500])
async def test_a_failing_api_server_is_not_ready(
    reviewer: TokenReviewer, token_reviews: Any, status: int
) -> None:
    token_reviews.accounts["t"] = ACCOUNTS.operator
    token_reviews.status = status
    with pytest.raises(NotReady, match="TokenReviewFailed"):
        await reviewer.authenticate("t")
    token_reviews.status = 201
    assert await reviewer.authenticate("t") == Caller(Role.OPERATOR)


async def test_cached_callers_stay_valid_while_the_api_server_is_down(
    reviewer: TokenReviewer, token_reviews: Any, clock: Clock
) -> None:
    token_reviews.accounts["t"] = ACCOUNTS.operator
    assert await reviewer.authenticate("t") == Caller(Role.OPERATOR)
    token_reviews.status = 500
    clock.seconds += 600
    assert await reviewer.authenticate("t") == Caller(Role.OPERATOR)
    with pytest.raises(NotReady, match="TokenReviewFailed"):
        await reviewer.authenticate("another")
    clock.seconds += 600
    with pytest.raises(NotReady, match="TokenReviewFailed"):
        await reviewer.authenticate("t")
    token_reviews.status = 201
    del token_reviews.accounts["t"]
    assert await reviewer.authenticate("t") is None


async def test_an_unreachable_api_server_is_not_ready() -> None:
    reviewer = TokenReviewer("http://127.0.0.1:9", TokenSource("own"), ACCOUNTS, "hmi-control-plane")
    with pytest.raises(NotReady, match="TokenReviewFailed") as failure:
        await reviewer.authenticate("secret-token")
    assert "secret-token" not in str(failure.value)
    await reviewer.close()


def test_a_rotated_token_is_read_again(tmp_path: Path) -> None:
    clock = Clock(0.0)
    file = tmp_path / "token"
    source = TokenSource(file=file, reread_seconds=5.0, clock=clock)
    with pytest.raises(NotReady, match="TokenUnreadable"):
        source.current()
    file.write_text("one\n")
    clock.seconds = 5.0
    assert source.current() == "one"
    file.write_text("two")
    clock.seconds = 9.0
    assert source.current() == "one"
    clock.seconds = 10.0
    assert source.current() == "two"
    file.unlink()
    clock.seconds = 20.0
    assert source.current() == "two"


def test_every_request_carries_the_current_token(tmp_path: Path) -> None:
    shown = []

    def answer(request: httpx.Request) -> httpx.Response:
        shown.append(request.headers.get("authorization"))
        return httpx.Response(200)

    file = tmp_path / "token"
    source = TokenSource(file=file, reread_seconds=0.0)
    with httpx.Client(transport=httpx.MockTransport(answer), auth=BearerAuth(source)) as client:
        with pytest.raises(httpx.TransportError, match="mount it"):
            client.get("http://control-plane")
        for token in ("one", "two"):
            file.write_text(token)
            client.get("http://control-plane")
    assert shown == ["Bearer one", "Bearer two"]


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="HMI_TOKEN_REVIEW"):
        InternalAuthSettings()
    monkeypatch.setenv("HMI_TOKEN_REVIEW", "true")
    monkeypatch.setenv("HMI_INTERNAL_TOKEN_FILE", "/nowhere/token")
    monkeypatch.setenv("HMI_ROLES__OPERATOR", "system:serviceaccount:hmi-system:hmi-operator")
    settings = InternalAuthSettings()
    assert settings.roles.operator == "system:serviceaccount:hmi-system:hmi-operator"
    assert settings.has_token
