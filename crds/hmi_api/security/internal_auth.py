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
import time
from collections.abc import Callable, Collection
from dataclasses import KW_ONLY, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from cachetools import TLRUCache
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from hmi_api.errors import NotReady
from hmi_api.security.bearer import TokenSource
from hmi_api.settings import HmiSettings

if TYPE_CHECKING:
    from kubernetes.aio.client import AuthenticationV1Api, V1TokenReviewStatus

log = logging.getLogger(__name__)

_SERVICE_ACCOUNT = "system:serviceaccount:"
_TRAINER_ACCOUNT = "default"
_POD_UID = "authentication.kubernetes.io/pod-uid"
_REVIEW_SECONDS = 5.0
_MAX_CACHED = 10_000
_MAX_TOKEN_LENGTH = 16_384
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Role(StrEnum):
    """Which part of HMI a caller is."""

    ANY = "Any"  # the static token: any part of a system on one machine
    OPERATOR = "Operator"
    RUNTIME = "Runtime"
    GATEWAY = "Gateway"
    CONTROL_PLANE = "ControlPlane"
    TRAINER = "Trainer"  # a training Job, in the namespace of its resource


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller.

    ``namespace`` is the only one that a trainer may access; None for other roles. ``pod_uid`` is the pod that
    the token is bound to, if any.
    """

    role: Role
    namespace: str | None = None
    pod_uid: str | None = None

    def may_act_as(self, roles: Collection[Role]) -> bool:
        """Return whether the caller has one of ``roles``."""
        return self.role is Role.ANY or self.role in roles

    def may_work_in(self, namespace: str) -> bool:
        """Return whether the caller may access the namespace: a trainer only its own."""
        return self.role is not Role.TRAINER or self.namespace == namespace


class CallerAuthenticator(Protocol):
    """Authenticates callers by their bearer token."""

    async def authenticate(self, token: str) -> Caller | None:
        """Return the token's caller, None if unknown. Raises ``NotReady`` if it cannot be checked now."""

    async def close(self) -> None:
        """Close the connections."""


class StaticTokenAuthenticator:
    """Accepts one static token, which grants every role."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def authenticate(self, token: str) -> Caller | None:
        """Compare in constant time."""
        return Caller(Role.ANY) if hmac.compare_digest(token.encode(), self._token) else None

    async def close(self) -> None:
        """Do nothing: there are no connections."""


class ServiceAccounts(BaseModel):
    """The service account of each part: ``system:serviceaccount:{namespace}:{name}``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operator: str | None = Field(default=None, description="The operator's.")
    runtime: str | None = Field(default=None, description="The runtimes'.")
    gateway: str | None = Field(default=None, description="The gateway's.")
    control_plane: str | None = Field(default=None, description="The control plane's.")

    def caller(self, username: str, pod_uid: str | None = None) -> Caller | None:
        """Return the caller that an account stands for, None if unknown.

        The account ``default`` of a namespace is the trainer of that namespace, except in the namespaces of
        HMI's own parts.
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


@dataclass(frozen=True, slots=True)
class _Review:
    """The cached result for one token."""

    caller: Caller | None
    fresh_until: float
    """Until then it is used without a new review."""
    expires_at: float
    """Until then it is used while the API server does not answer."""


@dataclass(eq=False)
class TokenReviewer:
    """Authenticates callers by TokenReview at the API server at ``url``, for tokens made for ``audience``.

    An accepted token is cached for ``accepted_seconds`` and never beyond its own expiry, a refused one for
    ``refused_seconds``. While the API server does not answer, an accepted token stays valid for
    ``outage_seconds``, so HMI keeps serving during an outage of the cluster's control plane. Concurrent
    requests with the same unknown token share one review. Use it from one event loop.
    """

    url: str
    own_token: TokenSource
    accounts: ServiceAccounts
    audience: str
    _: KW_ONLY
    ca_file: Path | None = None
    accepted_seconds: float = 60.0
    refused_seconds: float = 5.0
    outage_seconds: float = 900.0
    max_cached: int = _MAX_CACHED
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._cache: TLRUCache[bytes, _Review] = TLRUCache(
            self.max_cached, ttu=lambda _, review, __: review.expires_at, timer=self.clock
        )
        self._pending: dict[bytes, asyncio.Task[Caller | None]] = {}
        self._api: AuthenticationV1Api | None = None

    async def authenticate(self, token: str) -> Caller | None:
        """Return the token's caller, None if unknown. Raises ``NotReady`` TokenReviewFailed."""
        if not token or len(token) > _MAX_TOKEN_LENGTH:
            return None
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        cached = self._cache.get(digest)
        if cached is not None and cached.fresh_until > self.clock():
            return cached.caller
        pending = self._pending.get(digest)
        if pending is None:
            pending = self._pending[digest] = asyncio.create_task(self._review(digest, token))
            pending.add_done_callback(lambda task: self._forget_review(digest, task))
        # Shielded: the first caller may disconnect while others wait for the same review.
        return await asyncio.shield(pending)

    async def close(self) -> None:
        """Close the connections to the API server."""
        if self._api is not None:
            await self._api.api_client.close()

    def _forget_review(self, digest: bytes, task: "asyncio.Task[Caller | None]") -> None:
        del self._pending[digest]
        if not task.cancelled():
            task.exception()  # marks it as retrieved; every waiting caller may have disconnected

    async def _review(self, digest: bytes, token: str) -> Caller | None:
        try:
            status = await self._request_review(token)
        except NotReady:
            cached, now = self._cache.get(digest), self.clock()
            if cached is None or cached.caller is None:
                raise
            fresh_until = min(now + self.refused_seconds, cached.expires_at)
            self._cache[digest] = replace(cached, fresh_until=fresh_until)
            return cached.caller
        # No audiences in the answer: the authenticator does not know them, so the token is not for HMI.
        accepted = status is not None and status.authenticated and self.audience in (status.audiences or ())
        user = status.user if status is not None and accepted else None
        caller = None
        if user is not None:
            pod_uid = next(iter((user.extra or {}).get(_POD_UID, ())), None)
            caller = self.accounts.caller(user.username or "", pod_uid)
        now = self.clock()
        fresh_until = expires_at = now + self.refused_seconds
        if caller is not None:
            expiry = _expiry(token)
            fresh_until = min(now + self.accepted_seconds, expiry)
            expires_at = min(now + self.outage_seconds, expiry)
        self._cache[digest] = _Review(caller, fresh_until, expires_at)
        return caller

    async def _request_review(self, token: str) -> "V1TokenReviewStatus | None":
        # Imported here: they take 13 MiB, and most processes review no tokens.
        import aiohttp  # noqa: PLC0415
        from kubernetes.aio import client  # noqa: PLC0415

        if self._api is None:
            configuration = client.Configuration(
                host=self.url,
                ssl_ca_cert=str(self.ca_file) if self.ca_file else None,
                client_session_kwargs={"trust_env": False},
            )
            self._api = client.AuthenticationV1Api(client.ApiClient(configuration))
        spec = client.V1TokenReviewSpec(token=token, audiences=[self.audience])
        try:
            headers = {"Authorization": f"Bearer {self.own_token.current()}"}
            async with asyncio.timeout(_REVIEW_SECONDS):
                answer = await self._api.create_token_review(
                    client.V1TokenReview(spec=spec), _headers=headers
                )
            return answer.status
        except client.ApiException as error:
            why = f"it answered {error.status}"
        except NotReady as error:  # there is no own token
            why = error.message
        except (aiohttp.ClientError, TimeoutError) as error:
            why = type(error).__name__
        except ValueError:
            why = "its answer is no TokenReview"
        log.warning("the API server did not review a token: %s", why)
        raise NotReady("TokenReviewFailed", f"The API server did not review the token ({why}); try again.")


def _expiry(token: str) -> float:
    """Return the expiry in a token's claims, in seconds since 1970; infinity if there is none."""
    try:
        claims = token.split(".")[1]
        expiry = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"]
        return float(expiry)
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
        return float("inf")


class InternalAuthSettings(HmiSettings):
    """One static token on one machine; service-account tokens and TokenReview on Kubernetes."""

    model_config = SettingsConfigDict(env_prefix="HMI_", env_nested_delimiter="__", extra="ignore")

    internal_token: SecretStr | None = Field(
        default=None, min_length=16, description="Static token that all parts share; on one machine."
    )
    internal_token_file: Path | None = Field(
        default=None, description="File with the token that this part sends; read again when it is rotated."
    )
    token_review: bool = Field(
        default=False,
        description="Check tokens by TokenReview at the Kubernetes API server instead of internal_token.",
    )
    token_audience: str = Field(
        default="hmi-control-plane", description="Audience that tokens must be made for."
    )
    roles: ServiceAccounts = Field(
        default_factory=ServiceAccounts, description="The service account of each part."
    )
    kubernetes_url: str = Field(
        default="https://kubernetes.default.svc", description="Address of the Kubernetes API server."
    )
    kubernetes_ca_file: Path | None = Field(
        default=_ACCOUNT / "ca.crt", description="Certificate authority of the API server."
    )
    kubernetes_token_file: Path = Field(
        default=_ACCOUNT / "token", description="Token that this part sends to the API server."
    )

    @model_validator(mode="after")
    def _can_check(self) -> Self:
        if self.internal_token is None and not self.token_review:
            raise ValueError("set HMI_INTERNAL_TOKEN, or HMI_TOKEN_REVIEW=true on Kubernetes")
        return self

    @property
    def has_token(self) -> bool:
        """Whether this part has a token to send."""
        return self.internal_token is not None or self.internal_token_file is not None

    def token_source(self) -> TokenSource:
        """Return the source of the token that this part sends: the file, else the static token."""
        if self.internal_token_file is not None:
            return TokenSource(file=self.internal_token_file)
        if self.internal_token is None:
            raise ValueError("set HMI_INTERNAL_TOKEN or HMI_INTERNAL_TOKEN_FILE")
        return TokenSource(self.internal_token.get_secret_value())

    def caller_authenticator(self) -> CallerAuthenticator:
        """Return the authenticator of this part's callers."""
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
        return StaticTokenAuthenticator(self.internal_token.get_secret_value())
