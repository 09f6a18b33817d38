"""The runtimes of the fake control plane: placements, their revisions, and the reports of runtimes."""

from dataclasses import dataclass, field
from itertools import count

from fake_catalog import FakeCatalog
from fake_versions import LoadReport, StoredAdapter

from hmi_api.internal.catalog import LoadError
from hmi_api.internal.client import Refused
from hmi_api.internal.precision import EngineReports, PrecisionChoice, PrecisionRequest, RecordedPrecision
from hmi_api.internal.runtimes import (
    AdapterServing,
    AdapterVersionRef,
    DesiredState,
    DomainServing,
    Heartbeat,
    HeartbeatReply,
    LoadFailure,
    RuntimeRegistration,
)


@dataclass
class StoredRuntime:
    """A runtime, what is placed on it with the revision of its last change, and its reports."""

    registration: RuntimeRegistration
    revision: int
    forgotten: int
    """Removals up to this revision are not known any more."""
    draining: bool = False
    loads_at_once: bool = False
    engines: EngineReports | None = None
    adapters: dict[str, tuple[int, AdapterServing]] = field(default_factory=dict)
    domains: dict[tuple[str, int], tuple[int, DomainServing]] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    reports: dict[tuple[str, int], LoadReport] = field(default_factory=dict)
    """By tenant/adapter and version."""


class FakeRuntimes:
    """The registered runtimes, and the catalog that they serve."""

    def __init__(self) -> None:
        self.catalog = FakeCatalog(self.place, self.reports_of)
        self.registered: dict[str, StoredRuntime] = {}
        self.choices: dict[str, PrecisionChoice] = {}
        """Recorded precisions, by their key as JSON."""
        self._revisions = count(1)
        self._orders = count(1)

    @property
    def running(self) -> list[str]:
        """The ids of the runtimes that take placements."""
        return sorted(name for name, one in self.registered.items() if not one.draining)

    def register(self, name: str, registration: RuntimeRegistration) -> None:
        """Register a runtime; a new incarnation has loaded nothing yet."""
        known = self.registered.get(name)
        if known is None:
            revision = next(self._revisions)
            known = self.registered[name] = StoredRuntime(registration, revision, revision)
        if known.registration.incarnation != registration.incarnation:
            known.reports.clear()
        known.registration, known.draining = registration, False
        self.place()

    def start(self, name: str) -> None:
        """Register a runtime that loads at once whatever is placed on it, for tests without one."""
        hello = RuntimeRegistration(url=f"http://{name}", device="cpu", capacity_bytes=1, incarnation="one")
        self.register(name, hello)
        self.registered[name].loads_at_once = True
        self.place()

    def deregister(self, name: str) -> None:
        """Remove a runtime."""
        self.registered.pop(name, None)
        self.place()

    def record_precision(self, request: PrecisionRequest) -> RecordedPrecision:
        """Return the recorded choice; record the proposal if there is none."""
        key = request.key.model_dump_json()
        if request.proposal is not None:
            self.choices.setdefault(key, request.proposal)
        return RecordedPrecision(choice=self.choices.get(key))

    def report_engines(self, name: str, reports: EngineReports) -> None:
        """Record what a runtime computes in."""
        runtime = self.registered.get(name)
        if runtime is not None and runtime.registration.incarnation == reports.incarnation:
            runtime.engines = reports

    def heartbeat(self, name: str, beat: Heartbeat) -> HeartbeatReply:
        """Record what a runtime reports."""
        runtime = self.registered.get(name)
        if runtime is None or runtime.registration.incarnation != beat.incarnation:
            return HeartbeatReply(known=False, desired_revision=0)
        for one in beat.gone:
            runtime.reports.pop((one.adapter, one.version), None)
        known = {self._name(key, row) for key, row in self.catalog.adapters.items()}
        for one in [*beat.ready, *beat.failed]:
            if one.adapter in known:
                self._report(name, runtime, one)
        runtime.draining = beat.draining
        self.place()
        only_here = self._only_here(name) if beat.draining else 0
        return HeartbeatReply(known=True, desired_revision=runtime.revision, only_here=only_here)

    def desired_state(self, name: str, since: int) -> DesiredState:
        """Return what changed after revision ``since``, or everything."""
        runtime = self.require(name)
        full = not runtime.forgotten <= since <= runtime.revision
        after = 0 if full else since
        state = DesiredState(
            revision=runtime.revision,
            full=full,
            domains=[one for key, (at, one) in sorted(runtime.domains.items()) if at > after],
            adapters=[one for at, one in sorted(runtime.adapters.values(), key=_position) if at > after],
            removed_adapters=[] if full else [key for key, at in runtime.removed.items() if at > after],
        )
        read = [key for key, at in runtime.removed.items() if at <= since]
        if read and not full:
            runtime.forgotten = max(runtime.forgotten, since)
            for key in read:
                del runtime.removed[key]
        return state

    def require(self, name: str) -> StoredRuntime:
        """Return a registered runtime."""
        if name not in self.registered:
            raise Refused(404, "UnknownRuntime", f"Runtime {name} is not registered; register first.")
        return self.registered[name]

    def reports_of(self, key: str) -> list[LoadReport]:
        """Return what runtimes last reported of a TaskAdapter, the oldest report first."""
        name = self._name(key, self.catalog.adapters[key])
        found = [
            report
            for runtime in self.registered.values()
            for (adapter, _), report in runtime.reports.items()
            if adapter == name
        ]
        return sorted(found, key=lambda report: report.order)

    def loaded(self) -> set[str]:
        """Return ``tenant/adapter@version`` of all that runtimes have reported as loaded."""
        return {
            f"{adapter}@{version}"
            for runtime in self.registered.values()
            for (adapter, version), report in runtime.reports.items()
            if report.serves
        }

    def place(self) -> None:
        """Place each TaskAdapter on as many runtimes as it has replicas; record each runtime's changes."""
        known = {self._name(key, row) for key, row in self.catalog.adapters.items()}
        for runtime in self.registered.values():
            runtime.reports = {key: one for key, one in runtime.reports.items() if key[0] in known}
        for row in self.catalog.adapters.values():
            self._place_one(row)
        for name, runtime in self.registered.items():
            self._update_desired(name, runtime)

    def _place_one(self, row: StoredAdapter) -> None:
        row.placed = [name for name in row.placed if name in self.registered and row.current]
        active = [name for name in row.placed if name in self.running]
        free = [name for name in self.running if name not in row.placed and row.current]
        row.placed += free[: max(row.record.replicas - len(active), 0)]
        for name in active[row.record.replicas :]:
            row.placed.remove(name)

    def _update_desired(self, name: str, runtime: StoredRuntime) -> None:
        adapters: dict[str, AdapterServing] = {}
        domains: dict[tuple[str, int], DomainServing] = {}
        for key, row in self.catalog.adapters.items():
            if name in row.placed:
                domain, serving = self._serving(key, row)
                adapters[serving.key] = serving
                domains[domain.key, domain.version.version] = domain
        revision = next(self._revisions)
        new_adapters = {
            key: one for key, one in adapters.items() if runtime.adapters.get(key, (0, 0))[1] != one
        }
        removed = [key for key in runtime.adapters if key not in adapters]
        new_domains = {key: one for key, one in domains.items() if key not in runtime.domains}
        if new_adapters or removed or new_domains:
            runtime.revision = revision
        runtime.removed = {key: at for key, at in runtime.removed.items() if key not in adapters}
        runtime.removed |= dict.fromkeys(removed, revision)
        runtime.adapters = {
            key: (revision, one) if key in new_adapters else runtime.adapters[key]
            for key, one in adapters.items()
        }
        runtime.domains = {
            key: (revision, one) if key in new_domains else runtime.domains[key]
            for key, one in domains.items()
        }
        if runtime.loads_at_once:
            wanted = {(key, one.version) for key, one in adapters.items()}
            runtime.reports = {key: one for key, one in runtime.reports.items() if key in wanted}
            for key, version in wanted - runtime.reports.keys():
                self._report(name, runtime, AdapterVersionRef(adapter=key, version=version))

    def _serving(self, key: str, row: StoredAdapter) -> tuple[DomainServing, AdapterServing]:
        """Return what a runtime needs for the current version; the newest table of its layers is used."""
        current, record = row.current, row.record
        assert current is not None
        versions = self.catalog.domains[record.domain].versions
        domain = next(one for one in reversed(versions) if one.layers.digest == current.layers_digest)
        serving = AdapterServing(
            key=self._name(key, row),
            tenant_id=f"tenant_{record.tenant}",
            version=current.version,
            task_type=record.task_type,
            labels=current.labels,
            artifact=current.artifact,
            domain=record.domain,
            domain_version=domain.version,
            pinned=record.pinned,
        )
        return DomainServing(key=record.domain, version=domain), serving

    def _report(self, name: str, runtime: StoredRuntime, one: AdapterVersionRef) -> None:
        failure, serves = None, True
        if isinstance(one, LoadFailure):
            failure, serves = LoadError(reason=one.reason, message=one.message), one.serves
        report = LoadReport(name, one.version, failure, next(self._orders), serves)
        runtime.reports[one.adapter, one.version] = report

    def _only_here(self, name: str) -> int:
        """Return how many current versions only this draining runtime has loaded; 0 if it is the only one."""
        if not self.running:
            return 0
        loaded = [self._loaded_on(key, row) for key, row in self.catalog.adapters.items()]
        return sum(name in runtimes and not runtimes & set(self.running) for runtimes in loaded)

    def _loaded_on(self, key: str, row: StoredAdapter) -> set[str]:
        current = row.current.version if row.current else None
        return {one.runtime for one in self.reports_of(key) if one.version == current and one.serves}

    @staticmethod
    def _name(key: str, row: StoredAdapter) -> str:
        """Return the ``tenant/adapter`` of a TaskAdapter."""
        return f"{row.record.tenant}/{key.partition('/')[2]}"


def _position(entry: tuple[int, AdapterServing]) -> tuple[int, str]:
    return entry[0], entry[1].key
