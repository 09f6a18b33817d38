"""API keys: their form, and the tenant of a key without a database query at every request.

A key is ``hmi_{id}_{secret}``. The id is public and finds the row; the secret is 256 random bits, so a plain
SHA-256 of it withstands any search and can be checked on every request, as a slow password hash could not.
"""

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock

from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from hmi_api.errors import NotReady
from hmi_control_plane.auth.guards import IDENTITY, bearer
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import ApiKey
from hmi_control_plane.http.errors import Unauthorized

_KEY = re.compile(r"hmi_([0-9a-f]{16})_([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class NewKey:
    """A new key; ``token`` is shown to its owner once and not stored."""

    id: str
    token: str = field(repr=False)
    secret_hash: str = field(repr=False)


def new_key() -> NewKey:
    """Return a new key from the system's random source."""
    key_id, secret = secrets.token_hex(8), secrets.token_hex(32)
    return NewKey(id=key_id, token=f"hmi_{key_id}_{secret}", secret_hash=hash_secret(secret))


def parse_key(token: str) -> tuple[str, str] | None:
    """Return the id and the secret of a well-formed key, else None."""
    match = _KEY.fullmatch(token)
    return (match[1], match[2]) if match else None


def hash_secret(secret: str) -> str:
    """Return the SHA-256 of a secret in hexadecimal; only this is stored."""
    return hashlib.sha256(secret.encode()).hexdigest()


log = logging.getLogger(__name__)
_CACHE_SIZE = 50_000
TIMEOUT_SECONDS = 2.0
"""How long a request waits for the database to check its key."""
_PAUSE_SECONDS = 1.0
"""How long the database is not queried after it did not answer, so that no threads wait for it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The tenant and the key of a request."""

    tenant: str
    tenant_id: str
    key_id: str


@dataclass(frozen=True, slots=True)
class _CachedIdentity:
    identity: Identity
    checked_at: float


class Authenticator:
    """Checks API keys against the catalog and caches the result for ``cache_seconds``.

    A key in use is checked again in the background after half of that time, so that no request waits for it.
    While the database does not answer, a key that was valid within ``without_database_seconds`` is accepted.
    Only valid keys are cached, by the hash of the whole key: no secret stays in memory, and a flood of wrong
    keys cannot evict valid ones. Use it from one event loop.
    """

    def __init__(
        self,
        database: Database,
        *,
        cache_seconds: float = 3.0,
        without_database_seconds: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._cache_seconds = cache_seconds
        self._without_database_seconds = without_database_seconds
        self._clock = clock
        self._lock = Lock()
        self._cached: OrderedDict[str, _CachedIdentity] = OrderedDict()
        self._checks: dict[str, asyncio.Task[Identity]] = {}
        self._next_query_at = float("-inf")
        self._invalidations = 0

    async def tenant_from_key(self, request: Request) -> Identity:
        """Return the caller's identity, as a FastAPI dependency; the key is checked once per request.

        Raise Unauthorized (401), or NotReady (503) for a key that is not cached while the database is down.
        """
        known: Identity | None = getattr(request.state, IDENTITY, None)
        if known is not None:
            return known
        token = bearer(request)
        if token is None:
            raise Unauthorized("MissingApiKey", "Send your API key as Authorization: Bearer hmi_...")
        digest = hash_secret(token)
        cached = self._cached_identity(digest, self._cache_seconds)
        if cached is not None:
            is_fresh = self._cached_identity(digest, self._cache_seconds / 2) is not None
            if not is_fresh and self._clock() >= self._next_query_at:
                self._start_check(digest, token)
            return cached
        try:
            return await self._check(digest, token)
        except (SQLAlchemyError, TimeoutError) as error:
            known_before = self._cached_identity(digest, self._without_database_seconds)
            if known_before is None:
                raise NotReady(
                    "DatabaseUnavailable", "API keys cannot be checked at the moment; try again."
                ) from error
            return known_before

    def identify(self, token: str) -> Identity:
        """Authenticate a key against the catalog. Raise Unauthorized if it is unknown, wrong or revoked."""
        parsed = parse_key(token)
        invalidations = self._invalidations
        identity = self._query(*parsed) if parsed else None
        digest = hash_secret(token)
        if identity is None:
            with self._lock:
                self._cached.pop(digest, None)  # a revoked key must not be accepted again during an outage
            raise Unauthorized("InvalidApiKey", "This API key is not valid; check it or request a new one.")
        self._store(digest, identity, invalidations)
        return identity

    def forget(self, key_id: str) -> None:
        """Remove a key from this process's cache; other processes follow within ``cache_seconds``."""
        with self._lock:
            self._invalidations += 1
            for digest in [d for d, entry in self._cached.items() if entry.identity.key_id == key_id]:
                del self._cached[digest]

    def _query(self, key_id: str, secret: str) -> Identity | None:
        today = datetime.now(UTC).date()
        with self._database.read() as session:
            key = session.get(ApiKey, key_id)
            if key is None or key.revoked_at is not None:
                return None
            if not hmac.compare_digest(key.secret_hash, hash_secret(secret)):
                return None
            identity = Identity(tenant=key.tenant, tenant_id=key.tenant_id, key_id=key.id)
            used_today = key.last_used_on == today
        if not used_today:
            with self._database.write() as session:
                used = session.get(ApiKey, key_id)
                if used is not None:
                    used.last_used_on = today
        return identity

    async def _check(self, digest: str, token: str) -> Identity:
        """Check a key once for all requests that wait for it. Raise TimeoutError for a slow database."""
        if self._clock() < self._next_query_at:
            raise TimeoutError("the database did not answer recently")
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return await asyncio.shield(self._start_check(digest, token))
        except TimeoutError:
            self._next_query_at = self._clock() + _PAUSE_SECONDS
            raise

    def _start_check(self, digest: str, token: str) -> "asyncio.Task[Identity]":
        check = self._checks.get(digest)
        if check is None:
            check = self._checks[digest] = asyncio.create_task(run_in_threadpool(self.identify, token))
            check.add_done_callback(lambda done: self._finish_check(digest, done))
        return check

    def _finish_check(self, digest: str, done: "asyncio.Task[Identity]") -> None:
        del self._checks[digest]
        if not done.cancelled() and isinstance(done.exception(), SQLAlchemyError):
            self._next_query_at = self._clock() + _PAUSE_SECONDS
            log.warning("API keys cannot be checked: %s", type(done.exception()).__name__)

    def _cached_identity(self, digest: str, seconds: float) -> Identity | None:
        with self._lock:
            entry = self._cached.get(digest)
            is_valid = entry is not None and entry.checked_at + seconds > self._clock()
            return entry.identity if entry is not None and is_valid else None

    def _store(self, digest: str, identity: Identity, invalidations: int) -> None:
        with self._lock:
            if invalidations != self._invalidations:  # perhaps of this key, after the database was read
                return
            self._cached[digest] = _CachedIdentity(identity, self._clock())
            self._cached.move_to_end(digest)
            while len(self._cached) > _CACHE_SIZE:
                self._cached.popitem(last=False)
