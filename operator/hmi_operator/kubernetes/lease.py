"""Leader election with a Lease, fenced: a replica stops acting before another one can take over."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from kubernetes.aio.client import V1Lease, V1LeaseSpec, V1ObjectMeta

from hmi_api.errors import HmiError, NotReady
from hmi_operator.kubernetes.client import ApiServerConflict, KubernetesClient, find, micro_time

logger = logging.getLogger(__name__)

_SEIZING = 20
"""Attempts to take a Lease from a replica that renews it at the same time."""
_AFTER_EXIT_SECONDS = 60.0
_STANDBY_LOG_SECONDS = 600.0
"""How often a standby logs again which replica leads."""
_ACTED_ON = 5 / 6
"""Share of a lease in which its holder acts; the rest is for requests still on their way at its end."""


def boot_clock() -> float:
    """Return seconds since boot, including those in which the machine slept: a lease expires in them too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True)
class _Seen:
    """The holder as last read, and when, by this replica's clock, that was first read.

    Clocks of machines differ, so the times in the Lease itself are only for people.
    """

    holder: str
    version: str
    at: float


class Lease:
    """One replica's view of the Lease ``name``.

    The replica leads for ``seconds`` from when its last successful renewal was *sent*, less a safety
    margin. Another replica waits at least ``seconds`` from when it read that renewal. ``held`` therefore
    becomes false before any other replica can take over, even in a process that was suspended.
    """

    def __init__(
        self,
        client: KubernetesClient,
        namespace: str,
        identity: str,
        *,
        name: str = "hmi-operator",
        seconds: float = 12.0,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        self._api = client.coordination
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._seconds = seconds
        self.every = seconds / 4
        """Seconds between two renewals, or between two reads of another replica's lease."""
        self._retry_seconds = seconds / 12
        self._longest_try = seconds * _ACTED_ON / 2
        """Seconds after which a hanging renewal is abandoned, early enough for another to succeed."""
        self._clock = clock
        self._seen: _Seen | None = None
        self._logged: tuple[str, float] = ("", float("-inf"))
        self._answered_at = clock()
        self._last_error = "no answer"
        self._held_until = float("-inf")

    @property
    def held(self) -> bool:
        """Whether this replica may act now."""
        return self._clock() < self._held_until

    @property
    def seconds_left(self) -> float:
        """Seconds for which it may act without another renewal; 0 when it may not act."""
        return max(self._held_until - self._clock(), 0.0)

    def problem(self) -> str | None:
        """Return why this replica could neither keep the Lease nor take it over, or None.

        The API server has not answered, or has refused access to the Lease, for the time of two leases.
        """
        silent = self._clock() - self._answered_at
        if silent <= 2 * self._seconds:
            return None
        lease = f"{self._namespace}/{self._name}"
        return f"the lease {lease} could not be read or renewed for {silent:.0f} s: {self._last_error}"

    def require_held(self) -> None:
        """Raise ``NotReady`` NotLeader when this replica may not act. Call it before every write."""
        if not self.held:
            raise NotReady("NotLeader", "This replica is not the leader.")

    async def acquire(self) -> None:
        """Wait until this replica holds the Lease; errors are retried."""
        while True:
            if await self._attempt():
                break
            self._log_leader()
            await asyncio.sleep(self.every)
        logger.info("leader: %s has the lease %s/%s", self._identity, self._namespace, self._name)

    def _log_leader(self) -> None:
        """Log that this replica is a standby, when the leader changes and now and then."""
        holder = self._seen.holder if self._seen is not None else ""
        logged, at = self._logged
        if not holder or (holder == logged and self._clock() < at + _STANDBY_LOG_SECONDS):
            return
        self._logged = (holder, self._clock())
        logger.info(
            "standby: %s does nothing while %s leads; to see what the leader does: kubectl -n %s logs %s",
            self._identity,
            holder,
            self._namespace,
            holder,
        )

    async def keep(self) -> None:
        """Renew the Lease while this replica holds it; return when it is lost."""
        pause = self.every
        while self.held:
            await asyncio.sleep(min(pause, self.seconds_left))
            pause = self.every if await self._renew() else self._retry_seconds
        self._held_until = float("-inf")
        logger.warning("leader: %s has lost the lease", self._identity)

    async def seize(self) -> None:
        """Take the Lease from its holder, and wait until that replica is sure to have stopped acting."""
        for _ in range(_SEIZING):
            try:
                if await self._take(by_force=True):
                    break
            except ApiServerConflict:
                continue  # the holder renewed it in between
        else:
            raise NotReady("Contended", f"The lease {self._namespace}/{self._name} could not be taken.")
        lapse = self._clock() + self._seconds
        while (left := lapse - self._clock()) > 0:
            await asyncio.sleep(min(left, self.every))
            await self._attempt()

    async def hold_after_exit(self) -> None:
        """Keep the Lease from other replicas for another minute, although this process ends."""
        self._seconds = _AFTER_EXIT_SECONDS
        await self._attempt()

    async def release(self) -> None:
        """Release the Lease, so that another replica need not wait until it expires."""
        if not self.held:
            return
        self._held_until = float("-inf")
        try:
            lease = await self._read()
            if lease is not None and _holder(lease) == self._identity:
                spec = lease.spec or V1LeaseSpec()
                spec.holder_identity, spec.lease_duration_seconds = "", 1
                spec.acquire_time = spec.acquire_time and micro_time(spec.acquire_time)
                spec.renew_time = spec.renew_time and micro_time(spec.renew_time)
                lease.spec = spec
                await self._replace(lease)
                logger.info("leader: %s released the lease", self._identity)
        except HmiError as error:
            logger.warning("leader: the lease could not be released and will expire: %s", error)

    async def _renew(self) -> bool:
        """Try once to renew the Lease, for no longer than it is held; return whether it was renewed."""
        until = self._held_until
        try:
            async with asyncio.timeout(max(min(self.seconds_left, self._longest_try), 0.001)):
                await self._attempt()
        except TimeoutError:
            logger.warning("leader: the lease could not be renewed: no answer")
        return self._held_until > until

    async def _attempt(self) -> bool:
        """Take or renew the Lease if it is free, expired or ours; return whether it is ours now."""
        try:
            taken = await self._take()
        except ApiServerConflict:
            logger.debug("leader: another replica was faster")
            taken = self.held
        except HmiError as error:
            logger.warning("leader: the lease could not be read or renewed: %s", error)
            self._last_error = str(error)
            return self.held
        self._answered_at = self._clock()
        return taken

    async def _take(self, *, by_force: bool = False) -> bool:
        lease = await self._read()
        sent_at = self._clock()
        if lease is None:
            created = V1Lease(metadata=V1ObjectMeta(name=self._name, namespace=self._namespace))
            await self._api.create_namespaced_lease(self._namespace, self._renewed(created))
        elif not (by_force or self._may_take(lease)):
            self._held_until = float("-inf")
            return False
        elif await find(self._replace(self._renewed(lease))) is None:
            return False
        self._held_until = sent_at + self._seconds * _ACTED_ON
        return True

    async def _read(self) -> V1Lease | None:
        return await find(self._api.read_namespaced_lease(self._name, self._namespace))

    async def _replace(self, lease: V1Lease) -> V1Lease:
        return await self._api.replace_namespaced_lease(self._name, self._namespace, lease)

    def _may_take(self, lease: V1Lease) -> bool:
        holder = _holder(lease)
        version = str(lease.metadata.resource_version) if lease.metadata else ""
        if holder in ("", self._identity):
            return True
        if self._seen is None or (self._seen.holder, self._seen.version) != (holder, version):
            self._seen = _Seen(holder, version, self._clock())
        lasts = float((lease.spec and lease.spec.lease_duration_seconds) or self._seconds)
        return self._clock() >= self._seen.at + lasts

    def _renewed(self, lease: V1Lease) -> V1Lease:
        """Return the Lease with this replica as its holder, renewed now; the version stays as it was read."""
        now = datetime.now(UTC)
        spec = lease.spec or V1LeaseSpec()
        if _holder(lease) != self._identity:
            before = spec.lease_transitions
            spec.acquire_time = now
            spec.lease_transitions = 0 if before is None else before + 1
        spec.holder_identity = self._identity
        spec.lease_duration_seconds = max(round(self._seconds), 1)
        spec.acquire_time, spec.renew_time = micro_time(spec.acquire_time or now), micro_time(now)
        lease.spec = spec
        return lease


def _holder(lease: V1Lease) -> str:
    return (lease.spec and lease.spec.holder_identity) or ""
