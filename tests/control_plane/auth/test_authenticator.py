"""API keys: their format, and the cache of checked keys."""

import asyncio
import threading

import pytest
from sqlalchemy import event
from starlette.requests import Request

from hmi_api.errors import NotReady
from hmi_control_plane.auth import authenticator
from hmi_control_plane.auth.authenticator import Authenticator, hash_secret, new_key, parse_key
from hmi_control_plane.catalog import tenants
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import ApiKey
from hmi_control_plane.http.errors import Unauthorized


class _Clock:
    """A clock in seconds that only a test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def _request(token: str) -> Request:
    return Request({"type": "http", "headers": [(b"authorization", f"Bearer {token}".encode())]})


@pytest.fixture
def token(database: Database) -> str:
    """The key of a tenant acme."""
    with database.write() as session:
        tenants.ensure_tenant(session, "acme")
        return tenants.create_key(session, "acme", "test")[1].token


def test_a_key_is_its_id_and_secret() -> None:
    made = new_key()
    parsed = parse_key(made.token)
    assert parsed is not None
    assert parsed[0] == made.id
    assert hash_secret(parsed[1]) == made.secret_hash
    assert made.token not in repr(made)
    assert made.secret_hash not in repr(made)


@pytest.mark.parametrize("token", ["", "hmi_", "hmi_0_1", "Bearer x", "hmi_" + "0" * 16 + "_" + "g" * 64])
def test_malformed_keys_are_not_parsed(token: str) -> None:
    assert parse_key(token) is None


def test_the_secret_is_not_stored(database: Database, token: str) -> None:
    with database.read() as session:
        row = session.query(ApiKey).one()
    assert token.rpartition("_")[2] not in str(vars(row))


@pytest.mark.anyio
async def test_a_checked_key_is_cached_for_a_limited_time(database: Database, token: str) -> None:
    clock = _Clock()
    authenticator = Authenticator(database, cache_seconds=3.0, clock=clock)
    queries: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *call: queries.append(call[2]))
    identity = await authenticator.tenant_from_key(_request(token))
    assert identity.tenant == "acme"
    assert queries
    with database.write() as session:
        tenants.revoke_key(session, "acme", identity.key_id)
    queries.clear()
    clock.seconds = 1.4
    assert await authenticator.tenant_from_key(_request(token)) == identity
    assert not queries
    clock.seconds = 3.1
    with pytest.raises(Unauthorized):
        await authenticator.tenant_from_key(_request(token))


@pytest.mark.anyio
async def test_a_key_in_use_is_checked_again_in_the_background(database: Database, token: str) -> None:
    clock = _Clock()
    authenticator = Authenticator(database, cache_seconds=3.0, clock=clock)
    queries: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *call: queries.append(call[2]))
    identity = await authenticator.tenant_from_key(_request(token))
    queries.clear()
    clock.seconds = 2.9
    assert await authenticator.tenant_from_key(_request(token)) == identity
    assert not queries  # it did not wait
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=60)
    assert queries
    queries.clear()
    clock.seconds = 4.3
    assert await authenticator.tenant_from_key(_request(token)) == identity
    assert not queries


@pytest.mark.anyio
async def test_a_revoked_key_in_use_is_refused_after_its_next_check(database: Database, token: str) -> None:
    clock = _Clock()
    authenticator = Authenticator(database, cache_seconds=3.0, clock=clock)
    identity = await authenticator.tenant_from_key(_request(token))
    with database.write() as session:
        tenants.revoke_key(session, "acme", identity.key_id)
    clock.seconds = 2.9
    assert await authenticator.tenant_from_key(_request(token)) == identity
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=60)
    with pytest.raises(Unauthorized):
        await authenticator.tenant_from_key(_request(token))


@pytest.mark.anyio
async def test_a_forgotten_key_is_checked_with_its_next_request(database: Database, token: str) -> None:
    authenticator = Authenticator(database, cache_seconds=1000.0)
    identity = await authenticator.tenant_from_key(_request(token))
    with database.write() as session:
        tenants.revoke_key(session, "acme", identity.key_id)
    authenticator.forget(identity.key_id)
    with pytest.raises(Unauthorized):
        await authenticator.tenant_from_key(_request(token))


@pytest.mark.anyio
async def test_a_request_does_not_wait_for_a_slow_database(
    database: Database, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authenticator, "TIMEOUT_SECONDS", 0.05)
    clock, answers = _Clock(), threading.Event()
    checked = Authenticator(database, clock=clock)
    event.listen(database.engine, "before_cursor_execute", lambda *_call: answers.wait(60))
    with pytest.raises(NotReady, match="DatabaseUnavailable"):
        await checked.tenant_from_key(_request(token))
    answers.set()
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=60)
    assert (await checked.tenant_from_key(_request(token))).tenant == "acme"


@pytest.fixture
def anyio_backend() -> str:
    """Only asyncio."""
    return "asyncio"
