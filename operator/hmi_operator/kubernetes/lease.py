"""Who of several replicas does the work: a Lease that one holds, renews and gives back."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from hmi_api.errors import HmiError, NotReady
from hmi_operator.kubernetes.api import KubeApi, Manifest
from hmi_operator.kubernetes.errors import Conflict
from hmi_operator.kubernetes.kinds import LEASES

logger = logging.getLogger(__name__)

_SEIZING = 20
"""Tries to take a Lease from a holder that renews it meanwhile."""
_AFTERWARDS_SECONDS = 60.0
_STANDBY_TOLD_SECONDS = 600.0
"""How often a standby says again who leads: whoever reads its log looks at the last lines."""
_ACTED_ON = 5 / 6
"""Share of a lease in which its holder acts; the rest is for what is on its way when the time is up."""


def boot_clock() -> float:
    """Return seconds since boot, those in which the machine slept included: a lease runs out in them too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True)
class _Seen:
    """A holder as it was last seen, and when by our own clock that was new to us.

    Clocks of machines differ, so the times in the Lease itself are for people.
    """

    holder: str
    version: str
    at: float


class Lease:
    """One replica's view of a Lease named ``name``.

    It is held for ``seconds`` from the moment at which the last renewal that succeeded was *sent*, less a
    safety margin: another replica counts at least ``seconds`` from when it saw that renewal. ``held`` is
    therefore false before anybody else can take over, also in a process that was stopped and goes on.
    """

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        identity: str,
        *,
        name: str = "hmi-operator",
        seconds: float = 12.0,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._seconds = seconds
        self._clock = clock
        self._seen: _Seen | None = None
        self._told: tuple[str, float] = ("", float("-inf"))
        self._answered_at = clock()
        self._last_error = "no answer"
        self._held_until = float("-inf")

    @property
    def held(self) -> bool:
        """Say whether this replica may act now."""
        return self._clock() < self._held_until

    @property
    def seconds_left(self) -> float:
        """How long it may act without another renewal; 0 when it may not."""
        return max(self._held_until - self._clock(), 0.0)

    @property
    def every(self) -> float:
        """Seconds between two renewals, or two looks at another's lease."""
        return self._seconds / 4

    @property
    def _again(self) -> float:
        """Seconds until a renewal that failed is tried again."""
        return self._seconds / 12

    @property
    def _longest_try(self) -> float:
        """Seconds after which a renewal that hangs is given up: so early that another can still succeed."""
        return self._seconds * _ACTED_ON / 2

    def trouble(self) -> str | None:
        """Return why this replica could neither keep the Lease nor take it over, or None.

        The API server has not answered for the time of two leases, or does not let this replica have it.
        """
        silent = self._clock() - self._answered_at
        if silent <= 2 * self._seconds:
            return None
        lease = f"{self._namespace}/{self._name}"
        return f"the lease {lease} could not be had for {silent:.0f} s: {self._last_error}"

    def must_hold(self) -> None:
        """Raise ``NotReady`` when this replica may not act: to be called before every act."""
        if not self.held:
            raise NotReady("NotLeader", "Another replica of the operator has the work.")

    async def acquire(self) -> None:
        """Wait until the Lease is ours; whatever goes wrong meanwhile is tried again."""
        while True:
            if await self._attempt():
                break
            self._tell_who_leads()
            await asyncio.sleep(self.every)
        logger.info("leader: %s has the lease %s/%s", self._identity, self._namespace, self._name)

    def _tell_who_leads(self) -> None:
        """Say in the log that this replica is a standby, when another one begins to lead and now and then."""
        holder = self._seen.holder if self._seen is not None else ""
        told, at = self._told
        if not holder or (holder == told and self._clock() < at + _STANDBY_TOLD_SECONDS):
            return
        self._told = (holder, self._clock())
        logger.info(
            "standby: %s does nothing while %s leads; what that one does: kubectl -n %s logs %s",
            self._identity,
            holder,
            self._namespace,
            holder,
        )

    async def keep(self) -> None:
        """Renew the Lease for as long as it is ours; returns when it is lost."""
        pause = self.every
        while self.held:
            await asyncio.sleep(min(pause, self.seconds_left))
            pause = self.every if await self._renew() else self._again
        self._held_until = float("-inf")
        logger.warning("leader: %s has lost the lease", self._identity)

    async def seize(self) -> None:
        """Take the Lease from whoever holds it, and wait until that replica is sure to have noticed."""
        for _ in range(_SEIZING):
            try:
                if await self._take(by_force=True):
                    break
            except Conflict:
                continue  # the holder has just renewed it
        else:
            raise NotReady("Contended", f"The lease {self._namespace}/{self._name} could not be taken.")
        lapse = self._clock() + self._seconds
        while (left := lapse - self._clock()) > 0:
            await asyncio.sleep(min(left, self.every))
            await self._attempt()

    async def hold_on(self) -> None:
        """Keep others from the Lease for a minute more, though this process ends."""
        self._seconds = _AFTERWARDS_SECONDS
        await self._attempt()

    async def release(self) -> None:
        """Give the Lease back, so that another replica need not wait for it to run out."""
        if not self.held:
            return
        self._held_until = float("-inf")
        try:
            lease = await self._api.get(LEASES, self._namespace, self._name)
            if lease is not None and _holder(lease) == self._identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                await self._api.replace(LEASES, self._namespace, lease)
                logger.info("leader: %s gave the lease back", self._identity)
        except HmiError as error:
            logger.warning("leader: the lease could not be given back, and runs out: %s", error)

    async def _renew(self) -> bool:
        """Try once to renew what is held, for no longer than it is held; return whether it was renewed."""
        until = self._held_until
        try:
            async with asyncio.timeout(max(min(self.seconds_left, self._longest_try), 0.001)):
                await self._attempt()
        except TimeoutError:
            logger.warning("leader: the lease was asked for in vain: no answer")
        return self._held_until > until

    async def _attempt(self) -> bool:
        """Take or renew the Lease if it is free, run out or ours; return whether it is ours now."""
        try:
            taken = await self._take()
        except Conflict:
            logger.debug("leader: another replica was quicker")
            taken = self.held
        except HmiError as error:
            logger.warning("leader: the lease could not be asked for: %s", error)
            self._last_error = str(error)
            return self.held
        self._answered_at = self._clock()
        return taken

    async def _take(self, *, by_force: bool = False) -> bool:
        lease = await self._api.get(LEASES, self._namespace, self._name)
        sent_at = self._clock()
        if lease is None:
            await self._api.create(LEASES, self._namespace, self._body())
        elif not (by_force or self._may_take(lease)):
            self._held_until = float("-inf")
            return False
        elif await self._api.replace(LEASES, self._namespace, self._renewed(lease)) is None:
            return False
        self._held_until = sent_at + self._seconds * _ACTED_ON
        return True

    def _may_take(self, lease: Manifest) -> bool:
        holder, version = _holder(lease), str(lease["metadata"]["resourceVersion"])
        if holder in ("", self._identity):
            return True
        if self._seen is None or (self._seen.holder, self._seen.version) != (holder, version):
            self._seen = _Seen(holder, version, self._clock())
        lasts = float(lease["spec"].get("leaseDurationSeconds") or self._seconds)
        return self._clock() >= self._seen.at + lasts

    def _body(self) -> Manifest:
        spec = self._spec() | {"acquireTime": _now(), "leaseTransitions": 0}
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": spec,
        }

    def _renewed(self, lease: Manifest) -> Manifest:
        spec = lease.setdefault("spec", {})
        if _holder(lease) != self._identity:
            transitions = int(spec.get("leaseTransitions") or 0) + 1
            spec |= {"acquireTime": _now(), "leaseTransitions": transitions}
        spec |= self._spec()
        return lease

    def _spec(self) -> dict[str, Any]:
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(round(self._seconds), 1),
            "renewTime": _now(),
        }


def _holder(lease: Manifest) -> str:
    return str((lease.get("spec") or {}).get("holderIdentity") or "")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
