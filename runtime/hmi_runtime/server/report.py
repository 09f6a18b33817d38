"""What the next heartbeat says: changes since the last one that was answered. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hmi_api.internal.runtimes import LoadFailure
from hmi_runtime.cache import AdapterId


@dataclass(frozen=True)
class Delta:
    """Changes that one heartbeat carries."""

    ready: frozenset[AdapterId]
    gone: frozenset[AdapterId]
    failed: Mapping[AdapterId, LoadFailure]


@dataclass
class Report:
    """What this runtime can serve, and which of it the control plane has not been told."""

    served: set[AdapterId] = field(default_factory=set)
    failures: dict[AdapterId, LoadFailure] = field(default_factory=dict)
    _ready: set[AdapterId] = field(default_factory=set)
    _gone: set[AdapterId] = field(default_factory=set)
    _failed: set[AdapterId] = field(default_factory=set)

    def ready(self, adapter: AdapterId) -> None:
        """An adapter can be served from now on."""
        self.served.add(adapter)
        self._gone -= {gone for gone in self._gone if str(gone) == str(adapter)}
        self._ready.add(adapter)

    def failed(self, adapter: AdapterId, failure: LoadFailure) -> None:
        """An adapter could not be brought to where it can serve."""
        if self.failures.get(adapter) != failure:
            self.failures[adapter] = failure
            self._failed.add(adapter)

    def gone(self, adapter: AdapterId, *, replaced: bool = False) -> None:
        """An adapter is served no more; ``replaced`` by one of its name and version, which was made anew."""
        if adapter in self.served:
            self.served.discard(adapter)
            if not replaced:
                self._gone.add(adapter)
        self._ready.discard(adapter)

    def forget_failures(self, key: str) -> None:
        """What failed of an adapter, in whatever version, matters no more."""
        for failed in [adapter for adapter in self.failures if adapter.key == key]:
            del self.failures[failed]
            self._failed.discard(failed)

    @property
    def has_news(self) -> bool:
        """Whether there is anything the control plane does not know."""
        return bool(self._ready or self._gone or self._failed)

    def news(self) -> Delta:
        """Return what the next heartbeat should carry."""
        failed = {adapter: self.failures[adapter] for adapter in self._failed}
        return Delta(frozenset(self._ready), frozenset(self._gone), failed)

    def told(self, delta: Delta) -> None:
        """A heartbeat with ``delta`` was answered."""
        self._ready -= delta.ready
        self._gone -= delta.gone
        self._failed -= {
            adapter for adapter, failure in delta.failed.items() if self.failures.get(adapter) == failure
        }

    def tell_all_again(self) -> None:
        """The control plane knows nothing of us: the next heartbeat carries everything."""
        self._ready = set(self.served)
        self._failed = set(self.failures)
        self._gone.clear()
