"""Authentication of callers of HMI's internal APIs, with the settings for it.

On one machine all parts share one static token. On Kubernetes each part sends the token of its service
account, which the API server checks (TokenReview of ``authentication.k8s.io/v1``). Results are cached by the
SHA-256 of the token, so most requests need no call, and no token stays in memory. Tokens are never logged.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol, Self

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import SettingsConfigDict

from hmi_api.errors import NotReady
from hmi_api.security.bearer import BearerAuth, TokenSource
from hmi_api.settings import HmiSettings

_SERVICE_ACCOUNT = "system:serviceaccount:"
_TRAINER_ACCOUNT = "default"


class Role(StrEnum):
    """What a caller is to HMI."""

    ANY = "Any"  # the bearer of the static token: every part of a system on one machine
    OPERATOR = "Operator"
    RUNTIME = "Runtime"
    GATEWAY = "Gateway"
    CONTROL_PLANE = "ControlPlane"
    TRAINER = "Trainer"  # a training Job, in the namespace of its resource


@dataclass(frozen=True, slots=True)
class Caller:
    """Who called. ``namespace`` is where a trainer may work, and None for everybody else.

    ``pod_uid`` is the pod that its token was made for, where it is bound to one.
    """

    role: Role
    namespace: str | None = None
    pod_uid: str | None = None

    def may_act_as(self, roles: Collection[Role]) -> bool:
        """Say whether this caller has one of ``roles``."""
        return self.role is Role.ANY or self.role in roles

    def may_work_in(self, namespace: str) -> bool:
        """Say whether this caller may touch what belongs to ``namespace``: a trainer only its own."""
        return self.role is not Role.TRAINER or self.namespace == namespace


class CallerCheck(Protocol):
    """Tells from a bearer token who calls."""

    async def caller(self, token: str) -> Caller | None:
        """Return who shows ``token``, None for nobody we know. ``NotReady`` when that cannot be told now."""

    async def close(self) -> None:
        """Let go of connections."""


class StaticTokenCheck:
    """Knows one token, whose bearer may do everything."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def caller(self, token: str) -> Caller | None:
        """Compare in constant time."""
        return Caller(Role.ANY) if hmac.compare_digest(token.encode(), self._token) else None

    async def close(self) -> None:
        """There is nothing to let go of."""


class ServiceAccounts(BaseModel):
    """Which service account each part runs as, in full: ``system:serviceaccount:{namespace}:{name}``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operator: str | None = Field(default=None, description="The operator's.")
    runtime: str | None = Field(default=None, description="The runtimes'.")
    gateway: str | None = Field(default=None, description="The gateway's.")
    control_plane: str | None = Field(default=None, description="The control plane's.")

    def caller(self, username: str, pod_uid: str | None = None) -> Caller | None:
        """Return what the account called ``username`` is to HMI, None for nothing.

        The account ``default`` of any namespace but those of HMI's own parts is the trainer of its namespace.
        """
        named = {
            self.operator: Role.OPERATOR,
            self.runtime: Role.RUNTIME,
            self.gateway: Role.GATEWAY,
            self.control_plane: Role.CONTROL_PLANE,
        }
        if username in named:
            return Caller(named[username])
        namespace, _, account = username.removeprefix(_SERVICE_ACCOUNT).partition(":")
        is_account = username.startswith(_SERVICE_ACCOUNT) and bool(namespace)
        ours = {name.removeprefix(_SERVICE_ACCOUNT).partition(":")[0] for name in named if name}
        if not is_account or account != _TRAINER_ACCOUNT or namespace in ours:
            return None
        return Caller(Role.TRAINER, namespace, pod_uid)


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


_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class InternalAuthSettings(HmiSettings):
    """One static token on one machine; service-account tokens and TokenReview on Kubernetes."""

    model_config = SettingsConfigDict(env_prefix="HMI_", env_nested_delimiter="__", extra="ignore")

    internal_token: SecretStr | None = Field(
        default=None, min_length=16, description="What HMI's own parts show one another, where it is one."
    )
    internal_token_file: Path | None = Field(
        default=None, description="File with the token this part shows; read again when it is rotated."
    )
    token_review: bool = Field(
        default=False,
        description="Ask the Kubernetes API server who shows a token, instead of internal_token.",
    )
    token_audience: str = Field(default="hmi-control-plane", description="What reviewed tokens are made for.")
    roles: ServiceAccounts = Field(
        default_factory=ServiceAccounts, description="Which service account each part runs as."
    )
    kubernetes_url: str = Field(
        default="https://kubernetes.default.svc", description="Address of the Kubernetes API server."
    )
    kubernetes_ca_file: Path | None = Field(
        default=_ACCOUNT / "ca.crt", description="Certificate authority of the API server."
    )
    kubernetes_token_file: Path = Field(
        default=_ACCOUNT / "token", description="Token with which this part asks the API server."
    )

    @model_validator(mode="after")
    def _can_check(self) -> Self:
        if self.internal_token is None and not self.token_review:
            raise ValueError("set HMI_INTERNAL_TOKEN, or HMI_TOKEN_REVIEW=true on Kubernetes")
        return self

    @property
    def has_token(self) -> bool:
        """Whether this part has a token to show."""
        return self.internal_token is not None or self.internal_token_file is not None

    def token_source(self) -> TokenSource:
        """Return the source of the token that this part shows; the file goes before the static one."""
        if self.internal_token_file is not None:
            return TokenSource(file=self.internal_token_file)
        if self.internal_token is None:
            raise ValueError("set HMI_INTERNAL_TOKEN or HMI_INTERNAL_TOKEN_FILE")
        return TokenSource(self.internal_token.get_secret_value())

    def caller_check(self) -> CallerCheck:
        """Return what tells this part who calls it."""
        if self.token_review:
            secure = self.kubernetes_url.startswith("https")
            return TokenReviewer(
                self.kubernetes_url,
                TokenSource(file=self.kubernetes_token_file),
                self.roles,
                self.token_audience,
                ca_file=self.kubernetes_ca_file if secure else None,
            )
        if self.internal_token is None:
            raise ValueError("set HMI_INTERNAL_TOKEN or HMI_TOKEN_REVIEW")
        return StaticTokenCheck(self.internal_token.get_secret_value())
