"""The adapter cache: every registered adapter on disk, the recent ones in host memory, the hot in slots.

Tiers are inclusive: what stands in a slot is in host memory too, so leaving a slot costs nothing, and an
adapter that leaves host memory leaves its slot with it. One lock guards the indexes; files are read and
tensors written outside it.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from hmi_api.artifacts import ArtifactRef
from hmi_api.errors import HmiError, NotReady
from hmi_api.internal.runtimes import AdapterServing
from hmi_runtime.cache.tiers import CacheEvents, LruIndex, SlotIndex, Tier, Unobserved

log = logging.getLogger(__name__)


class AdapterId(NamedTuple):
    """One version of one adapter; ``key`` is tenant/adapter, ``artifact`` its artifact's digest.

    An adapter that is deleted and made anew has the same key and begins at version 1 again.
    """

    key: str
    version: int
    artifact: str = ""

    @classmethod
    def of(cls, adapter: AdapterServing) -> "AdapterId":
        """Return the id of what the control plane wants served."""
        return cls(adapter.key, adapter.version, adapter.artifact.digest)

    def __str__(self) -> str:
        return f"{self.key}@{self.version}"


class Weights(Protocol):
    """What the cache needs to know of an adapter's tensors."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""


W = TypeVar("W", bound=Weights)
OnHeld = Callable[[HmiError | None], None]
"""Called once: with None when the adapter is held in host memory, else with why it is not."""


@dataclass(frozen=True, slots=True)
class _Failure:
    error: HmiError
    until: float


@dataclass(frozen=True, slots=True)
class Lease(Generic[W]):
    """Slots that a batch may use until the lease ends; ``failed`` are those that could not be written."""

    slots: dict[AdapterId, int]
    failed: dict[AdapterId, HmiError]


class SlotWriter(Protocol[W]):  # type: ignore[misc]  # invariant on purpose: it is written to
    """Device memory of one engine: a pool that takes an adapter into a slot."""

    def write(self, slot: int, weights: W) -> None:
        """Copy the tensors into the slot; ``HmiError`` when they do not fit."""


class AdapterCache(Generic[W]):
    """Byte-budgeted host tier over a loader, with leases on device slots.

    ``load`` reads one adapter's verified tensors; it runs on ``loaders`` and never on a caller's thread.
    """

    def __init__(
        self,
        load: Callable[[AdapterId, ArtifactRef], W],
        loaders: Executor,
        *,
        host_limit: int,
        retry_after: float = 5.0,
        room_wait: float = 10.0,
        events: CacheEvents | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._loaders = loaders
        self._retry_after = retry_after
        self._room_wait = room_wait
        self._events = events or Unobserved()
        self._clock = clock
        self._artifacts: dict[AdapterId, ArtifactRef] = {}
        self._pinned: set[AdapterId] = set()
        self._index: LruIndex[AdapterId] = LruIndex(host_limit, pin_limit=host_limit // 2)
        self._weights: dict[AdapterId, W] = {}
        self._waiting: dict[AdapterId, list[OnHeld]] = {}
        self._failures: dict[AdapterId, _Failure] = {}
        self._slot_tiers: list[SlotTier[W]] = []
        self.changed = threading.Condition(threading.RLock())

    # --- registration: O(1), reads nothing ---------------------------------------------------------

    def register(self, adapter: AdapterId, artifact: ArtifactRef, *, pinned: bool = False) -> None:
        """Know an adapter by its artifact; nothing is read until it is held."""
        with self.changed:
            self._artifacts[adapter] = artifact
            self._failures.pop(adapter, None)
            if pinned:
                self._pinned.add(adapter)
            else:
                self._pinned.discard(adapter)
            if adapter in self._index:
                self._apply_pin(adapter)

    def forget(self, adapter: AdapterId) -> None:
        """Know an adapter no more; its tensors go now, or when the last batch that uses them is done."""
        with self.changed:
            self._artifacts.pop(adapter, None)
            self._pinned.discard(adapter)
            self._failures.pop(adapter, None)
            self._drop_if_forgotten(adapter)

    def __contains__(self, adapter: AdapterId) -> bool:
        return adapter in self._artifacts

    # --- host memory --------------------------------------------------------------------------------

    def hold(self, adapter: AdapterId, then: OnHeld) -> None:
        """Bring an adapter to host memory, count a use of it, and call ``then``.

        ``then`` runs on this thread when the adapter is there (or known to be broken), else on a loader's.
        It must be quick. When it gets None, ``release`` is owed.
        """
        with self.changed:
            if adapter in self._index:
                self._index.hold(adapter)
                outcome = None
            elif (failure := self._recent_failure(adapter)) is not None:
                outcome = failure
            else:
                self._join_load(adapter, then)
                return
        if outcome is None:
            self._events.hit(Tier.HOST)
        then(outcome)

    def release(self, adapter: AdapterId) -> None:
        """Count one use less."""
        with self.changed:
            self._index.release(adapter)
            self._drop_if_forgotten(adapter)
            self.changed.notify_all()

    def weights(self, adapter: AdapterId) -> W:
        """Return the tensors of an adapter that the caller holds."""
        return self._weights[adapter]

    def add_slots(self, slots: int, pool: SlotWriter[W]) -> "SlotTier[W]":
        """Open a device tier over ``pool``; the cache evicts from it what leaves host memory."""
        tier = SlotTier(self, SlotIndex[AdapterId](slots), pool, self._events)
        with self.changed:
            self._slot_tiers.append(tier)
        return tier

    @property
    def host_used(self) -> int:
        """Bytes of tensors in host memory."""
        return self._index.used

    @property
    def host_limit(self) -> int:
        """The host byte budget."""
        return self._index.limit

    def resident(self) -> dict[AdapterId, int]:
        """Return a snapshot of what is in host memory, with bytes."""
        with self.changed:
            return {adapter: self._index.size(adapter) for adapter in self._index}

    def is_pinned(self, adapter: AdapterId) -> bool:
        """Return whether an adapter was registered as pinned."""
        return adapter in self._pinned

    # --- loading ------------------------------------------------------------------------------------

    def _recent_failure(self, adapter: AdapterId) -> HmiError | None:
        if adapter not in self._artifacts:
            return NotReady("NotRegistered", f"{adapter} is not served here; try again shortly.")
        failure = self._failures.get(adapter)
        if failure is None or failure.until <= self._clock():
            return None
        return failure.error

    def _join_load(self, adapter: AdapterId, then: OnHeld) -> None:
        """Queue ``then`` behind the load of ``adapter``, which is started unless it is under way."""
        waiting = self._waiting.get(adapter)
        if waiting is None:
            self._waiting[adapter] = [then]
            self._loaders.submit(self._bring, adapter, self._artifacts[adapter])
        else:
            waiting.append(then)

    def _bring(self, adapter: AdapterId, artifact: ArtifactRef) -> None:
        started = self._clock()
        error: HmiError | None = None
        waiting: list[OnHeld] = []
        try:
            weights = self._load(adapter, artifact)
            with self.changed:
                self._admit(adapter, weights)
                waiting = self._waiting.pop(adapter)
                for _ in waiting:
                    self._index.hold(adapter)
                self._drop_if_forgotten(adapter)
        except Exception as failure:  # noqa: BLE001  # one broken adapter fails alone, whatever broke it
            error = _as_hmi_error(adapter, failure)
            with self.changed:
                if adapter in self._artifacts:
                    self._failures[adapter] = _Failure(error, self._clock() + self._retry_after)
                waiting = self._waiting.pop(adapter, [])
        self._events.loaded(Tier.HOST, self._clock() - started, failed=error is not None)
        for then in waiting:
            then(error)

    def _admit(self, adapter: AdapterId, weights: W) -> None:
        """Make room and put the tensors in; waits a while when everything is in use."""
        size = weights.nbytes
        if not self._index.ever_fits(size) or not self.changed.wait_for(
            lambda: self._index.has_room(size), timeout=self._room_wait
        ):
            raise NotReady(
                "HostBudgetFull",
                f"{adapter} takes {size} bytes, which do not fit beside what is in use in "
                f"{self._index.limit}; raise HMI_HOST_BUDGET.",
            )
        for evicted in self._index.add(adapter, size):
            del self._weights[evicted]
            self._leave_slots(evicted)
            self._events.evicted(Tier.HOST, Tier.DISK)
        self._weights[adapter] = weights
        self._apply_pin(adapter)

    def _apply_pin(self, adapter: AdapterId) -> None:
        if adapter not in self._pinned:
            self._index.unpin(adapter)
        elif not self._index.pin(adapter):
            log.warning("%s is served but not pinned: pins hold their half of host memory already", adapter)

    def _drop_if_forgotten(self, adapter: AdapterId) -> None:
        if adapter in self._artifacts or adapter not in self._index or self._index.uses(adapter):
            return
        self._index.remove(adapter)
        del self._weights[adapter]
        self._leave_slots(adapter)

    def _leave_slots(self, adapter: AdapterId) -> None:
        for tier in self._slot_tiers:
            tier.drop(adapter)


class SlotTier(Generic[W]):
    """The device tier of one engine: leases slots to batches and writes them on the caller's thread."""

    def __init__(
        self,
        cache: AdapterCache[W],
        index: SlotIndex[AdapterId],
        pool: SlotWriter[W],
        events: CacheEvents,
    ) -> None:
        self._cache = cache
        self._index = index
        self._pool = pool
        self._events = events

    @property
    def most_at_once(self) -> int:
        """Different adapters that one lease may ask for."""
        return self._index.most_at_once

    @property
    def slots(self) -> int:
        """Slots there are."""
        return self._index.limit

    def resident(self) -> list[AdapterId]:
        """Return a snapshot of the adapters that stand in a slot."""
        with self._cache.changed:
            return list(self._index)

    def lease(self, adapters: Sequence[AdapterId]) -> Lease[W]:
        """Give each of the different ``adapters`` a slot, waiting for batches in flight where needed.

        The caller holds them in host memory and owes ``end``. At most ``most_at_once`` of them. Called by
        one thread an engine; slots that another lease uses are never written.
        """
        if len(adapters) > self.most_at_once:
            raise ValueError(f"{len(adapters)} adapters asked for, {self.most_at_once} slots at once")
        lease: Lease[W] = Lease({}, {})
        for adapter in adapters:
            slot, fresh = self._place(adapter)
            try:
                if fresh:
                    self._write(slot, adapter)
                lease.slots[adapter] = slot
            except Exception as failure:  # noqa: BLE001  # one broken adapter fails alone, whatever broke it
                lease.failed[adapter] = _as_hmi_error(adapter, failure)
                with self._cache.changed:
                    self._index.release(adapter)
                    self._index.drop(adapter)
        return lease

    def end(self, lease: Lease[W]) -> None:
        """Give the slots of a lease back; the adapters stay in them until others need the room."""
        with self._cache.changed:
            for adapter in lease.slots:
                self._index.release(adapter)
            self._cache.changed.notify_all()

    @contextmanager
    def leased(self, adapters: Sequence[AdapterId]) -> Iterator[Lease[W]]:
        """Lease for the length of a ``with`` block."""
        lease = self.lease(adapters)
        try:
            yield lease
        finally:
            self.end(lease)

    def drop(self, adapter: AdapterId) -> None:
        """Free the slot of an adapter that left host memory; the cache calls this under its lock."""
        if adapter in self._index:
            self._index.drop(adapter)

    def _place(self, adapter: AdapterId) -> tuple[int, bool]:
        """Return (slot, whether it must be written), waiting while every slot is in use."""
        pinned = self._cache.is_pinned(adapter)
        with self._cache.changed:
            while (place := self._index.hold(adapter, pinned=pinned)) is None:
                self._cache.changed.wait()
        if place.evicted is not None:
            self._events.evicted(Tier.DEVICE, Tier.HOST)
        if not place.fresh:
            self._events.hit(Tier.DEVICE)
        return place.slot, place.fresh

    def _write(self, slot: int, adapter: AdapterId) -> None:
        started = time.monotonic()
        self._pool.write(slot, self._cache.weights(adapter))
        self._events.loaded(Tier.DEVICE, time.monotonic() - started, failed=False)


def _as_hmi_error(adapter: AdapterId, failure: Exception) -> HmiError:
    """Return the reason that reaches the user; the cause itself goes to the log."""
    if isinstance(failure, HmiError):
        log.warning("adapter %s: %s", adapter, failure)
        return failure
    log.error("adapter %s could not be loaded", adapter, exc_info=failure)
    return NotReady(
        "AdapterLoadFailed",
        f"{adapter} could not be loaded ({type(failure).__name__}); the runtime's log has the cause.",
    )
