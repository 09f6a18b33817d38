"""The state of each adapter in a runtime, from which loads, routing and reports follow. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from hmi_api.errors import HmiError
from hmi_api.internal.runtimes import AdapterServing, DesiredState, DomainServing, LoadFailure
from hmi_runtime.cache.adapter_cache import AdapterId
from hmi_runtime.serving.loaded import LoadedAdapter


class _Change(Enum):
    """What the control plane does not know about a version yet."""

    READY = auto()
    GONE = auto()


@dataclass(slots=True)
class AdapterState:
    """The state of one adapter."""

    desired: AdapterServing | None = None  # the version that the control plane has scheduled here
    serving: LoadedAdapter | None = None  # the loaded version that answers
    replaced: dict[AdapterId, LoadedAdapter] = field(default_factory=dict)  # loaded for a grace period
    failure: LoadFailure | None = None  # why the desired version could not be loaded
    attempts: int = 0  # loads that failed since the last success
    unreported: dict[AdapterId, _Change] = field(default_factory=dict)
    failure_reported: bool = True

    @property
    def is_empty(self) -> bool:
        """Whether the state can be deleted."""
        return not (self.desired or self.serving or self.replaced or self.unreported)

    def set_failure(self, failure: LoadFailure | None) -> None:
        """Set or clear the failure; an unchanged one is not reported again."""
        if failure != self.failure:
            self.failure, self.failure_reported = failure, failure is None


@dataclass(frozen=True)
class Changes:
    """What a new desired state changes: versions to load and keys to remove."""

    load: Sequence[AdapterServing]
    remove: Sequence[str]


@dataclass(frozen=True)
class Report:
    """Changes that one heartbeat carries."""

    ready: frozenset[AdapterId]
    gone: frozenset[AdapterId]
    failed: Sequence[LoadFailure]


class AdapterStates:
    """The states of all adapters, and the desired state that they follow. Not thread-safe."""

    def __init__(self) -> None:
        self.revision = 0
        self._states: dict[str, AdapterState] = {}
        self._domains: dict[tuple[str, int], DomainServing] = {}
        self._to_report: set[str] = set()

    # --- desired state ------------------------------------------------------------------------------

    def apply(self, new: DesiredState) -> Changes:
        """Store a desired state and return what it changes; a full one replaces all before it."""
        desired = {adapter.key: adapter for adapter in new.adapters}
        announced = {(domain.key, domain.version.version): domain for domain in new.domains}
        removed = [
            key
            for key in (self._states if new.full else new.removed_adapters)
            if key not in desired and key in self._states and self._states[key].desired
        ]
        load = []
        for key, adapter in desired.items():
            state = self._states.setdefault(key, AdapterState())
            if state.desired != adapter:
                state.desired = adapter
                load.append(adapter)
        for key in removed:
            self._states[key].desired = None
        self._domains = announced | ({} if new.full else self._needed_domains(announced))
        self.revision = new.revision
        return Changes(load, removed)

    def _needed_domains(
        self, announced: Mapping[tuple[str, int], DomainServing]
    ) -> dict[tuple[str, int], DomainServing]:
        """Return the versions of before that a desired adapter needs and that were not announced again.

        The others, as of refreshed Domains, are announced again when an adapter needs them.
        """
        found = {}
        for state in self._states.values():
            if state.desired is not None:
                version = state.desired.domain, state.desired.domain_version
                if version not in announced and version in self._domains:
                    found[version] = self._domains[version]
        return found

    def is_desired(self, adapter: AdapterServing) -> bool:
        """Return whether exactly this version of an adapter is still desired."""
        state = self._states.get(adapter.key)
        return state is not None and state.desired == adapter

    def domain_of(self, adapter: AdapterServing) -> DomainServing | None:
        """Return the version of its Domain that an adapter needs; None if it was not announced."""
        return self._domains.get((adapter.domain, adapter.domain_version))

    # --- loading and unloading ----------------------------------------------------------------------

    def serving(self, key: str) -> LoadedAdapter | None:
        """Return the loaded version that answers for a key; None if there is none."""
        state = self._states.get(key)
        return None if state is None else state.serving

    def record_loaded(self, loaded: LoadedAdapter) -> AdapterId | None:
        """Let a desired version serve; return the version that it replaces, to be retired later.

        A version that only moves to another table of its Domain is not reported again, unless it failed to.
        """
        state = self._states[loaded.id.key]
        old, state.serving = state.serving, loaded
        state.replaced.pop(loaded.id, None)
        state.attempts = 0
        if old is not None and old.id == loaded.id and state.failure is None:
            return None
        state.set_failure(None)
        for other in [other for other in state.unreported if str(other) == str(loaded.id)]:
            if state.unreported[other] is _Change.GONE:
                del state.unreported[other]
        self._report(loaded.id, _Change.READY)
        if old is None or old.id == loaded.id:
            return None
        state.replaced[old.id] = old
        return old.id

    def record_failure(self, adapter: AdapterServing, error: HmiError) -> int:
        """Record why a desired version could not be loaded; return the number of attempts so far.

        If this very version serves, on an earlier table of its Domain, the report says so: gateways go on
        sending rows to it.
        """
        state = self._states[adapter.key]
        state.attempts += 1
        state.set_failure(
            LoadFailure(
                adapter=adapter.key,
                version=adapter.version,
                reason=error.reason,
                message=error.message,
                serves=state.serving is not None and state.serving.id == AdapterId.of(adapter),
            )
        )
        self._to_report.add(adapter.key)
        return state.attempts

    def retire(self, version: AdapterId) -> LoadedAdapter | None:
        """Remove a replaced version and return it to be unloaded; None if it serves again or is gone."""
        state = self._states.get(version.key)
        loaded = None if state is None else state.replaced.pop(version, None)
        if state is None or loaded is None:
            return None
        self._forget_version(state, version)
        return loaded

    def remove(self, key: str) -> LoadedAdapter | None:
        """End an adapter that is desired no more; return the version that served, to be unloaded."""
        state = self._states[key]
        state.attempts = 0
        state.set_failure(None)
        loaded, state.serving = state.serving, None
        if loaded is not None:
            self._forget_version(state, loaded.id)
        self._drop_if_empty(key)
        return loaded

    def _forget_version(self, state: AdapterState, version: AdapterId) -> None:
        """Report a version as gone, unless an adapter created again under its name and version serves."""
        if state.serving is not None and str(state.serving.id) == str(version):
            state.unreported.pop(version, None)
            self._drop_if_empty(version.key)
        else:
            self._report(version, _Change.GONE)

    # --- reports ------------------------------------------------------------------------------------

    def next_report(self) -> Report:
        """Return the changes since the last report that was acknowledged."""
        ready, gone, failed = set(), set(), []
        for key in self._to_report:
            state = self._states[key]
            ready |= {version for version, change in state.unreported.items() if change is _Change.READY}
            gone |= {version for version, change in state.unreported.items() if change is _Change.GONE}
            if state.failure is not None and not state.failure_reported:
                failed.append(state.failure)
        return Report(frozenset(ready), frozenset(gone), failed)

    def acknowledge(self, report: Report) -> None:
        """Mark a report as received by the control plane; what changed meanwhile stays unreported."""
        for versions, change in ((report.ready, _Change.READY), (report.gone, _Change.GONE)):
            for version in versions:
                state = self._states.get(version.key)
                if state is not None and state.unreported.get(version) is change:
                    del state.unreported[version]
        for failure in report.failed:
            state = self._states.get(failure.adapter)
            if state is not None and state.failure == failure:
                state.failure_reported = True
        for key in list(self._to_report):
            state = self._states[key]
            if not state.unreported and state.failure_reported:
                self._to_report.discard(key)
            self._drop_if_empty(key)

    def report_all_again(self) -> None:
        """Report everything again, to a control plane that does not know this runtime."""
        for key, state in list(self._states.items()):
            loaded = [*state.replaced, *([state.serving.id] if state.serving else [])]
            state.unreported = dict.fromkeys(loaded, _Change.READY)
            state.failure_reported = state.failure is None
            self._to_report.add(key)
            self._drop_if_empty(key)

    def _report(self, version: AdapterId, change: _Change) -> None:
        self._states[version.key].unreported[version] = change
        self._to_report.add(version.key)

    def _drop_if_empty(self, key: str) -> None:
        if self._states[key].is_empty:
            del self._states[key]
            self._to_report.discard(key)
