"""Who calls an internal API, and in which role: told by the one static token, or by a service account."""

import hmac
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

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
