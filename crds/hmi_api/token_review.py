"""Bearer tokens checked by the Kubernetes API server: TokenReview of ``authentication.k8s.io/v1``.

The answer to a token is kept by the token's SHA-256 for a short while, so that a request costs no call and no
token stays in memory. Nothing of a token is ever logged.
"""

import asyncio
import base64
import binascii
import hashlib
import json
import logging
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from pydantic import BaseModel, Field, ValidationError

from hmi_api.bearer import BearerAuth, TokenSource
from hmi_api.callers import Caller, ServiceAccounts
from hmi_api.errors import NotReady

log = logging.getLogger(__name__)

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
_POD_UID = "authentication.kubernetes.io/pod-uid"
_ANSWER_SECONDS = 5.0
_MOST_CACHED = 10_000
_LONGEST_TOKEN = 16_384


class _User(BaseModel):
    username: str = ""
    extra: dict[str, list[str]] = Field(default_factory=dict)

    @property
    def pod_uid(self) -> str | None:
        """The pod that a token is bound to; None for one that is bound to no pod."""
        return next(iter(self.extra.get(_POD_UID, ())), None)


class _Status(BaseModel):
    authenticated: bool = False
    user: _User = Field(default_factory=_User)
    audiences: list[str] = Field(default_factory=list)


class _Review(BaseModel):
    status: _Status = Field(default_factory=_Status)


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller | None
    until: float
    """When it is to be asked again."""
    at_most: float
    """How long it is believed while nobody can be asked."""


class TokenReviewer:
    """Asks the API server at ``url`` who shows a token that was made for ``audience``.

    A good answer is believed for ``believe_seconds`` and never beyond the token's own expiry, a bad one for
    ``refuse_seconds``. While the API server cannot be asked, a good one is believed for ``outage_seconds``:
    HMI goes on serving when the cluster's control plane is away. Callers with the same unknown token wait
    for one call. Use it from one event loop.
    """

    def __init__(
        self,
        url: str,
        own_token: TokenSource,
        accounts: ServiceAccounts,
        audience: str,
        *,
        ca_file: Path | None = None,
        believe_seconds: float = 60.0,
        refuse_seconds: float = 5.0,
        outage_seconds: float = 900.0,
        most_cached: int = _MOST_CACHED,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._accounts = accounts
        self._audience = audience
        self._believe_seconds = believe_seconds
        self._refuse_seconds = refuse_seconds
        self._outage_seconds = outage_seconds
        self._most_cached = most_cached
        self._clock = clock
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Caller | None]] = {}
        self._client = httpx.AsyncClient(
            base_url=url,
            auth=BearerAuth(own_token),
            verify=ssl.create_default_context(cafile=ca_file) if ca_file is not None else True,
            timeout=_ANSWER_SECONDS,
            trust_env=False,
        )

    async def caller(self, token: str) -> Caller | None:
        """Return who shows ``token``; raises ``NotReady`` TokenReviewFailed when nobody can say."""
        if not token or len(token) > _LONGEST_TOKEN:
            return None
        name = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        known = self._known.get(name)
        if known is not None and known.until > self._clock():
            return known.caller
        asking = self._asking.get(name)
        if asking is None:
            asking = self._asking[name] = asyncio.create_task(self._ask(name, token))
            asking.add_done_callback(lambda done: self._asked(name, done))
        # Shielded: whoever asked first may hang up while others wait for the same answer.
        return await asyncio.shield(asking)

    async def close(self) -> None:
        """Close the connections to the API server."""
        await self._client.aclose()

    def _asked(self, name: bytes, done: "asyncio.Task[Caller | None]") -> None:
        del self._asking[name]
        if not done.cancelled():
            done.exception()  # whoever asked may be gone; it is logged where it arose

    async def _ask(self, name: bytes, token: str) -> Caller | None:
        try:
            status = await self._review(token)
        except NotReady:
            if (believed := self._believed_meanwhile(name)) is None:
                raise
            return believed
        # An answer without audiences comes from an authenticator that knows none: the token is not for us.
        meant_for_us = status.authenticated and self._audience in status.audiences
        user = status.user
        caller = self._accounts.caller(user.username, user.pod_uid) if meant_for_us else None
        now = self._clock()
        until = at_most = now + self._refuse_seconds
        if caller is not None:
            expiry = _expiry(token)
            until = min(now + self._believe_seconds, expiry)
            at_most = min(now + self._outage_seconds, expiry)
        self._remember(name, _Known(caller, until, at_most))
        return caller

    def _believed_meanwhile(self, name: bytes) -> Caller | None:
        """Return who showed the token when it was last reviewed, if that is to be believed without asking."""
        known, now = self._known.get(name), self._clock()
        if known is None or known.caller is None or known.at_most <= now:
            return None
        self._remember(name, replace(known, until=min(now + self._refuse_seconds, known.at_most)))
        return known.caller

    async def _review(self, token: str) -> _Status:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            answer = await self._client.post(PATH, json=body)
            answer.raise_for_status()
            return _Review.model_validate_json(answer.content).status
        except httpx.HTTPStatusError as error:
            why = f"it answered {error.response.status_code}"
        except httpx.HTTPError as error:
            why = type(error).__name__
        except ValidationError:
            why = "its answer is no TokenReview"
        log.warning("the API server did not review a token: %s", why)
        raise NotReady(
            "TokenReviewFailed", f"The API server could not be asked who calls ({why}); try again shortly."
        )

    def _remember(self, name: bytes, known: _Known) -> None:
        self._known[name] = known
        self._known.move_to_end(name)
        while len(self._known) > self._most_cached:
            self._known.popitem(last=False)


def _expiry(token: str) -> float:
    """Return when a reviewed token says that it expires, in seconds since 1970; never, if it does not say."""
    try:
        claims = token.split(".")[1]
        expiry = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"]
        return float(expiry)
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
        return float("inf")
