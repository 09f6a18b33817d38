"""API keys: their form, and from a key to its tenant without asking the database at every request.

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
    """A key just made; ``token`` is shown to its owner once and not kept."""

    id: str
    token: str = field(repr=False)
    secret_hash: str = field(repr=False)


def new_key() -> NewKey:
    """Make a key from the system's random source."""
    key_id, secret = secrets.token_hex(8), secrets.token_hex(32)
    return NewKey(id=key_id, token=f"hmi_{key_id}_{secret}", secret_hash=hash_secret(secret))


def parse_key(token: str) -> tuple[str, str] | None:
    """Return the id and the secret of a well-formed key, else None."""
    match = _KEY.fullmatch(token)
    return (match[1], match[2]) if match else None


def hash_secret(secret: str) -> str:
    """Return what is stored of a secret: its SHA-256, hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


log = logging.getLogger(__name__)
_MOST_CACHED = 50_000
_ANSWER_SECONDS = 2.0
_PAUSE_SECONDS = 1.0
"""After the database did not answer it is left alone for so long: no thread waits for it meanwhile."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a request is from."""

    tenant: str
    tenant_id: str
    key_id: str


@dataclass(frozen=True, slots=True)
class _Checked:
    identity: Identity
    at: float


class Authenticator:
    """Checks API keys against the catalog and believes a checked one for ``cache_seconds``.

    One that is in use is checked again in the background after half of that, so that no request waits for it.
    While the database does not answer, a key that it found good within ``without_database_seconds`` goes on.
    Only keys that were found good are cached, by the hash of the whole key, so no secret stays in memory
    and a flood of wrong keys cannot push the good ones out. Use it from one event loop.
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
        self._cached: OrderedDict[str, _Checked] = OrderedDict()
        self._asking: dict[str, asyncio.Task[Identity]] = {}
        self._ask_again_at = float("-inf")
        self._forgotten = 0

    async def tenant_from_key(self, request: Request) -> Identity:
        """Return the caller's identity, as a FastAPI dependency; it is checked once a request.

        Raises Unauthorized (401), and NotReady (503) for an unknown key while the database is away.
        """
        known: Identity | None = getattr(request.state, IDENTITY, None)
        if known is not None:
            return known
        token = bearer(request)
        if token is None:
            raise Unauthorized("MissingApiKey", "Send your API key as Authorization: Bearer hmi_...")
        digest = hash_secret(token)
        cached = self._recall(digest, self._cache_seconds)
        if cached is not None:
            if self._recall(digest, self._cache_seconds / 2) is None and self._clock() >= self._ask_again_at:
                self._start_asking(digest, token)
            return cached
        try:
            return await self._ask(digest, token)
        except (SQLAlchemyError, TimeoutError) as error:
            recalled = self._recall(digest, self._without_database_seconds)
            if recalled is None:
                raise NotReady(
                    "DatabaseUnavailable", "Keys cannot be checked at the moment; try again."
                ) from error
            return recalled

    def identify(self, token: str) -> Identity:
        """Return the identity behind a key; raises Unauthorized for unknown, wrong and revoked ones alike."""
        parsed = parse_key(token)
        forgotten = self._forgotten
        identity = self._look_up(*parsed) if parsed else None
        digest = hash_secret(token)
        if identity is None:
            with self._lock:
                self._cached.pop(digest, None)  # revoked: an outage must not bring it back
            raise Unauthorized("InvalidApiKey", "This API key is not valid; check it or ask for a new one.")
        self._remember(digest, identity, forgotten)
        return identity

    def forget(self, key_id: str) -> None:
        """Stop believing a key at once in this process; others follow within ``cache_seconds``."""
        with self._lock:
            self._forgotten += 1
            for digest in [d for d, one in self._cached.items() if one.identity.key_id == key_id]:
                del self._cached[digest]

    def _look_up(self, key_id: str, secret: str) -> Identity | None:
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

    async def _ask(self, digest: str, token: str) -> Identity:
        """Ask the database, once for all requests that show this key; TimeoutError when it takes too long."""
        if self._clock() < self._ask_again_at:
            raise TimeoutError("the database did not answer a moment ago")
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await asyncio.shield(self._start_asking(digest, token))
        except TimeoutError:
            self._ask_again_at = self._clock() + _PAUSE_SECONDS
            raise

    def _start_asking(self, digest: str, token: str) -> "asyncio.Task[Identity]":
        asking = self._asking.get(digest)
        if asking is None:
            asking = self._asking[digest] = asyncio.create_task(run_in_threadpool(self.identify, token))
            asking.add_done_callback(lambda done: self._asked(digest, done))
        return asking

    def _asked(self, digest: str, done: "asyncio.Task[Identity]") -> None:
        del self._asking[digest]
        if not done.cancelled() and isinstance(done.exception(), SQLAlchemyError):
            self._ask_again_at = self._clock() + _PAUSE_SECONDS
            log.warning("keys cannot be checked: %s", type(done.exception()).__name__)

    def _recall(self, digest: str, seconds: float) -> Identity | None:
        with self._lock:
            entry = self._cached.get(digest)
            return entry.identity if entry is not None and entry.at + seconds > self._clock() else None

    def _remember(self, digest: str, identity: Identity, forgotten: int) -> None:
        with self._lock:
            if forgotten != self._forgotten:  # perhaps this very key, after the database was read
                return
            self._cached[digest] = _Checked(identity, self._clock())
            self._cached.move_to_end(digest)
            while len(self._cached) > _MOST_CACHED:
                self._cached.popitem(last=False)
