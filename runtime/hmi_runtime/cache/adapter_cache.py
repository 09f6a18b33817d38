"""The adapter cache: adapters on disk, recently used ones in host memory, the busiest in device slots.

Tiers are inclusive: an adapter in a slot is also in host memory, so eviction from a slot copies nothing, and
eviction from host memory frees the slots too. One lock guards the indexes; files are read and tensors are
written outside it.
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
from hmi_runtime.cache.tiers import CacheEvents, LruIndex, SlotIndex, Tier

log = logging.getLogger(__name__)


class AdapterId(NamedTuple):
    """One version of one adapter; ``key`` is tenant/adapter, ``artifact`` its artifact's digest.

    An adapter that is deleted and created again has the same key and starts at version 1 again.
    """

    key: str
    version: int
    artifact: str = ""

    @classmethod
    def of(cls, adapter: AdapterServing) -> "AdapterId":
        """Return the id of an adapter of the desired state."""
        return cls(adapter.key, adapter.version, adapter.artifact.digest)

    @property
    def tenant(self) -> str:
        """The owner's name: the first part of the key."""
        return self.key.partition("/")[0]

    def __str__(self) -> str:
        return f"{self.key}@{self.version}"


class Weights(Protocol):
    """An adapter's tensors, of which the cache needs only the size."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""


W = TypeVar("W", bound=Weights)
OnLoaded = Callable[[HmiError | None], None]
"""Called once: with None when the adapter is in host memory and acquired, else with the reason why not."""


@dataclass(frozen=True, slots=True)
class _Failure:
    error: HmiError
    until: float


@dataclass(frozen=True, slots=True)
class AcquiredSlots(Generic[W]):
    """Slots that a batch may use until it releases them; ``failed``: adapters that could not be written."""

    slots: dict[AdapterId, int]
    failed: dict[AdapterId, HmiError]


class SlotWriter(Protocol[W]):  # type: ignore[misc]  # invariant on purpose: it is written to
    """The device memory of one engine, with slots for adapters."""

    def write(self, slot: int, weights: W) -> None:
        """Copy the tensors into the slot; ``HmiError`` when they do not fit."""


class AdapterCache(Generic[W]):
    """Host memory under a byte budget, filled by a loader, and device slots on top of it.

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
        self._events = events or CacheEvents()
        self._clock = clock
        self._artifacts: dict[AdapterId, ArtifactRef] = {}
        self._pinned: set[AdapterId] = set()
        self._index: LruIndex[AdapterId] = LruIndex(host_limit, pin_limit=host_limit // 2)
        self._weights: dict[AdapterId, W] = {}
        self._waiting: dict[AdapterId, list[OnLoaded]] = {}
        self._failures: dict[AdapterId, _Failure] = {}
        self._slot_tiers: list[SlotTier[W]] = []
        self.changed = threading.Condition(threading.RLock())

    # --- registration: O(1), reads nothing ---------------------------------------------------------

    def register(self, adapter: AdapterId, artifact: ArtifactRef, *, pinned: bool = False) -> None:
        """Register an adapter and its artifact; nothing is read until it is acquired."""
        with self.changed:
            self._artifacts[adapter] = artifact
            self._failures.pop(adapter, None)
            if pinned:
                self._pinned.add(adapter)
            else:
                self._pinned.discard(adapter)
            if adapter in self._index:
                self._apply_pin(adapter)

    def unregister(self, adapter: AdapterId) -> None:
        """Unregister an adapter; its tensors are removed once no batch uses them."""
        with self.changed:
            self._artifacts.pop(adapter, None)
            self._pinned.discard(adapter)
            self._failures.pop(adapter, None)
            self._remove_if_unregistered(adapter)

    def __contains__(self, adapter: AdapterId) -> bool:
        return adapter in self._artifacts

    # --- host memory --------------------------------------------------------------------------------

    def acquire(self, adapter: AdapterId, then: OnLoaded) -> None:
        """Load an adapter into host memory, count one more use of it, and call ``then``.

        ``then`` runs on the calling thread when the adapter is in host memory (or known to be broken), else
        on a loader's. It must be quick. If it gets None, the caller must call ``release`` later.
        """
        with self.changed:
            if adapter in self._index:
                self._index.acquire(adapter)
                failure = None
            elif (failure := self._recent_failure(adapter)) is None:
                self._join_load(adapter, then)
                return
        if failure is None:
            self._events.hit(Tier.HOST)
        then(failure)

    def release(self, adapter: AdapterId) -> None:
        """Count one use less; at zero the adapter may be evicted."""
        with self.changed:
            self._index.release(adapter)
            self._remove_if_unregistered(adapter)
            self.changed.notify_all()

    def weights(self, adapter: AdapterId) -> W:
        """Return the tensors of an adapter that the caller has acquired."""
        return self._weights[adapter]

    def add_slots(self, slots: int, pool: SlotWriter[W]) -> "SlotTier[W]":
        """Add a device tier over ``pool``; eviction from host memory also frees its slots."""
        tier = SlotTier(self, SlotIndex[AdapterId](slots), pool, self._events)
        with self.changed:
            self._slot_tiers.append(tier)
        return tier

    @property
    def host_used(self) -> int:
        """Bytes of tensors in host memory."""
        return self._index.used

    def loaded(self) -> dict[AdapterId, int]:
        """Return the adapters in host memory with their bytes, as a snapshot."""
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

    def _join_load(self, adapter: AdapterId, then: OnLoaded) -> None:
        """Call ``then`` after the load of ``adapter``, which is started unless it is running."""
        waiting = self._waiting.get(adapter)
        if waiting is None:
            self._waiting[adapter] = [then]
            self._loaders.submit(self._load_adapter, adapter, self._artifacts[adapter])
        else:
            waiting.append(then)

    def _load_adapter(self, adapter: AdapterId, artifact: ArtifactRef) -> None:
        started = self._clock()
        error: HmiError | None = None
        waiting: list[OnLoaded] = []
        try:
            weights = self._load(adapter, artifact)
            with self.changed:
                self._admit(adapter, weights)
                waiting = self._waiting.pop(adapter)
                for _ in waiting:
                    self._index.acquire(adapter)
                self._remove_if_unregistered(adapter)
        except Exception as failure:  # noqa: BLE001  # one broken adapter fails alone, whatever broke it
            error = _as_hmi_error(adapter, failure)
            # The error is kept. Its traceback refers to tensors, which would be in memory beyond the budget.
            error.__traceback__ = error.__cause__ = error.__context__ = None
            with self.changed:
                if adapter in self._artifacts:
                    self._failures[adapter] = _Failure(error, self._clock() + self._retry_after)
                waiting = self._waiting.pop(adapter, [])
        self._events.loaded(Tier.HOST, self._clock() - started, failed=error is not None)
        for then in waiting:
            then(error)

    def _admit(self, adapter: AdapterId, weights: W) -> None:
        """Evict until the tensors fit and add them; wait up to ``room_wait`` seconds while all is in use."""
        size = weights.nbytes
        if not self._index.ever_fits(size) or not self.changed.wait_for(
            lambda: self._index.has_room(size), timeout=self._room_wait
        ):
            raise NotReady(
                "HostBudgetFull",
                f"{adapter} takes {size} bytes, more than the free and idle part of "
                f"{self._index.limit}; raise HMI_HOST_BUDGET.",
            )
        for evicted in self._index.add(adapter, size):
            del self._weights[evicted]
            self._free_slots(evicted)
            self._events.evicted(Tier.HOST, Tier.DISK)
        self._weights[adapter] = weights
        self._apply_pin(adapter)

    def _apply_pin(self, adapter: AdapterId) -> None:
        if adapter not in self._pinned:
            self._index.unpin(adapter)
        elif not self._index.pin(adapter):
            log.warning(
                "%s is served but not pinned: pinned adapters use their half of host memory already", adapter
            )

    def _remove_if_unregistered(self, adapter: AdapterId) -> None:
        if adapter in self._artifacts or adapter not in self._index or self._index.uses(adapter):
            return
        self._index.remove(adapter)
        del self._weights[adapter]
        self._free_slots(adapter)

    def _free_slots(self, adapter: AdapterId) -> None:
        for tier in self._slot_tiers:
            tier.free(adapter)


class SlotTier(Generic[W]):
    """The device tier of one engine: assigns slots to batches and writes them on the caller's thread.

    Thread-safe. Batches acquire their slots one after another, so two that wait cannot hold what the other
    needs, and no batch reads a slot that another one is still writing.
    """

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
        self._acquiring = threading.Lock()

    @property
    def max_at_once(self) -> int:
        """Most different adapters that one ``acquire`` may name."""
        return self._index.max_at_once

    @property
    def slots(self) -> int:
        """Number of slots."""
        return self._index.limit

    def loaded(self) -> list[AdapterId]:
        """Return the adapters that have a slot, as a snapshot."""
        with self._cache.changed:
            return list(self._index)

    def acquire(self, adapters: Sequence[AdapterId]) -> AcquiredSlots[W]:
        """Assign a slot to each of the different ``adapters``, at most ``max_at_once``, and write those that
        are new.

        Waits for running batches while every slot is in use; slots in use are never written. The caller must
        have acquired the adapters in host memory, must call ``release`` later, and must not call this again
        before.
        """
        if len(adapters) > self.max_at_once:
            raise ValueError(f"{len(adapters)} adapters requested, {self.max_at_once} slots at once")
        with self._acquiring:
            return self._acquire(adapters)

    def _acquire(self, adapters: Sequence[AdapterId]) -> AcquiredSlots[W]:
        acquired: AcquiredSlots[W] = AcquiredSlots({}, {})
        for adapter in adapters:
            slot, is_new = self._assign(adapter)
            try:
                if is_new:
                    self._write(slot, adapter)
                acquired.slots[adapter] = slot
            except Exception as failure:  # noqa: BLE001  # one broken adapter fails alone, whatever broke it
                acquired.failed[adapter] = _as_hmi_error(adapter, failure)
                with self._cache.changed:
                    self._index.release(adapter)
                    self._index.free(adapter)
        return acquired

    def release(self, acquired: AcquiredSlots[W]) -> None:
        """Release the slots of a batch; the adapters stay in them until others need the slots."""
        with self._cache.changed:
            for adapter in acquired.slots:
                self._index.release(adapter)
            self._cache.changed.notify_all()

    @contextmanager
    def acquired(self, adapters: Sequence[AdapterId]) -> Iterator[AcquiredSlots[W]]:
        """Acquire slots for the length of a ``with`` block."""
        acquired = self.acquire(adapters)
        try:
            yield acquired
        finally:
            self.release(acquired)

    def free(self, adapter: AdapterId) -> None:
        """Free the slot of an adapter evicted from host memory; the cache calls this under its lock."""
        if adapter in self._index:
            self._index.free(adapter)

    def _assign(self, adapter: AdapterId) -> tuple[int, bool]:
        """Return (slot, whether it must be written), waiting while every slot is in use."""
        pinned = self._cache.is_pinned(adapter)
        with self._cache.changed:
            while (assignment := self._index.assign(adapter, pinned=pinned)) is None:
                self._cache.changed.wait()
        if assignment.evicted is not None:
            self._events.evicted(Tier.DEVICE, Tier.HOST)
        if not assignment.is_new:
            self._events.hit(Tier.DEVICE)
        return assignment.slot, assignment.is_new

    def _write(self, slot: int, adapter: AdapterId) -> None:
        started = time.monotonic()
        self._pool.write(slot, self._cache.weights(adapter))
        self._events.loaded(Tier.DEVICE, time.monotonic() - started, failed=False)


def _as_hmi_error(adapter: AdapterId, failure: Exception) -> HmiError:
    """Return the error that users see, and log its cause."""
    if isinstance(failure, HmiError):
        log.warning("adapter %s: %s", adapter, failure)
        return failure
    log.error("adapter %s could not be loaded", adapter, exc_info=failure)
    return NotReady(
        "AdapterLoadFailed",
        f"{adapter} could not be loaded ({type(failure).__name__}); the runtime's log has the cause.",
    )
