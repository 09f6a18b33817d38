"""From an API key to its tenant, without asking the database at every request."""

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from hmi_control_plane.auth.keys import hash_secret, parse_key
from hmi_control_plane.auth.tokens import bearer
from hmi_control_plane.errors import Unauthorized
from hmi_control_plane.storage import ApiKey, Database

_MOST_CACHED = 50_000


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a request is from."""

    tenant: str
    key_id: str


class Authenticator:
    """Checks API keys against the catalog and believes a checked one for ``cache_seconds``.

    Only keys that were found good are cached, by the hash of the whole key, so no secret stays in memory
    and a flood of wrong keys cannot push the good ones out.
    """

    def __init__(
        self, database: Database, *, cache_seconds: float = 3.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._cache_seconds = cache_seconds
        self._clock = clock
        self._lock = Lock()
        self._cached: OrderedDict[str, tuple[Identity, float]] = OrderedDict()

    async def tenant_from_key(self, request: Request) -> Identity:
        """Return the caller's identity, as a FastAPI dependency; raises Unauthorized (401)."""
        token = bearer(request)
        if token is None:
            raise Unauthorized("MissingApiKey", "Send your API key as Authorization: Bearer hmi_...")
        cached = self._recall(hash_secret(token))
        return cached if cached is not None else await run_in_threadpool(self.identify, token)

    def identify(self, token: str) -> Identity:
        """Return the identity behind a key; raises Unauthorized for unknown, wrong and revoked ones alike."""
        parsed = parse_key(token)
        identity = self._look_up(*parsed) if parsed else None
        if identity is None:
            raise Unauthorized("InvalidApiKey", "This API key is not valid; check it or ask for a new one.")
        self._remember(hash_secret(token), identity)
        return identity

    def forget(self, key_id: str) -> None:
        """Stop believing a key at once in this process; others follow within ``cache_seconds``."""
        with self._lock:
            for digest in [d for d, (identity, _) in self._cached.items() if identity.key_id == key_id]:
                del self._cached[digest]

    def _look_up(self, key_id: str, secret: str) -> Identity | None:
        today = datetime.now(UTC).date()
        with self._database.read() as session:
            key = session.get(ApiKey, key_id)
            if key is None or key.revoked_at is not None:
                return None
            if not hmac.compare_digest(key.secret_hash, hash_secret(secret)):
                return None
            identity, used_today = Identity(tenant=key.tenant, key_id=key.id), key.last_used_on == today
        if not used_today:
            with self._database.write() as session:
                used = session.get(ApiKey, key_id)
                if used is not None:
                    used.last_used_on = today
        return identity

    def _recall(self, digest: str) -> Identity | None:
        with self._lock:
            entry = self._cached.get(digest)
            return entry[0] if entry is not None and entry[1] > self._clock() else None

    def _remember(self, digest: str, identity: Identity) -> None:
        with self._lock:
            self._cached[digest] = (identity, self._clock() + self._cache_seconds)
            self._cached.move_to_end(digest)
            while len(self._cached) > _MOST_CACHED:
                self._cached.popitem(last=False)
