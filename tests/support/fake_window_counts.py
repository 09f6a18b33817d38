"""The windows that traffic looked up, as the fake control plane keeps them: plain dictionaries."""

from collections import Counter, defaultdict

import numpy as np
from fake_catalog import FakeCatalog

from hmi_api.internal.catalog import DomainTree, TableLevel
from hmi_api.internal.client import Refused
from hmi_api.internal.window_counts import DomainLookups, WindowArray, WindowCountReport, WindowCounts

LEAST_TENANTS, DAYS = 3, 30


def window_array(counts: dict[int, int]) -> WindowArray:
    """Return windows as they travel."""
    numbers = (list(counts), list(counts.values()))
    keys, found = (np.array(some, dtype="<i8").tobytes() for some in numbers)
    return WindowArray(keys=keys, counts=found)


def window_dict(windows: WindowArray) -> dict[int, int]:
    """Return windows and counts, in the order in which they travelled."""
    keys, counts = (np.frombuffer(some, "<i8").tolist() for some in (windows.keys, windows.counts))
    return dict(zip(keys, counts, strict=True))


class FakeWindowCounts:
    """Counts by Domain, layers and tenant. The fake's tenant ids are the tenants' names."""

    def __init__(self, catalog: FakeCatalog) -> None:
        self._catalog = catalog
        self._sequences: dict[str, int] = {}
        self._windows: dict[tuple[str, str], dict[str, Counter[int]]] = defaultdict(
            lambda: defaultdict(Counter)
        )
        self._lookups: dict[tuple[str, int], tuple[int, int]] = defaultdict(lambda: (0, 0))

    def record(self, report: WindowCountReport) -> None:
        """Count a report, unless it was counted before."""
        if report.sequence <= self._sequences.get(report.incarnation, -1):
            return
        self._sequences[report.incarnation] = report.sequence
        for one in report.domains:
            row = self._catalog.domains.get(one.domain)
            versions = row.versions if row else []
            if (one.version, one.layers_digest) not in {(v.version, v.layers.digest) for v in versions}:
                continue
            lookups, hits = self._lookups[one.domain, one.version]
            self._lookups[one.domain, one.version] = (lookups + one.lookups, hits + one.hits)
            for tenant in one.tenants:
                if tenant.tenant_id in self.tenant_ids():
                    self._windows[one.domain, one.layers_digest][tenant.tenant_id].update(window_dict(tenant))

    def tenant_ids(self) -> set[str]:
        """Return the ids of all tenants."""
        return {f"tenant_{name}" for name in self._catalog.tenants}

    def lookups_of(self, key: str, version: int) -> DomainLookups:
        """Return the statistics of a Domain's version."""
        return DomainLookups.of(*self._lookups[key, version])

    def tree_of(self, key: str) -> DomainTree:
        """Return what a published Domain shares."""
        current = self._catalog.domain_view(key).current
        made = {
            version.tables[0].digest: (name, version.entries)
            for name, row in self._catalog.domains.items()
            for version in row.versions
            if version.tables
        }
        own = [
            TableLevel(domain=key, entries=current.entries, bytes=table.bytes) for table in current.tables[:1]
        ]
        above = []
        for ref in current.tables[1:]:
            name, entries = made.get(ref.digest, ("", None))
            above.append(TableLevel(domain=name, entries=entries, bytes=ref.bytes))
        below = self._children(key, current.layers.digest)
        versions = [(child, self._catalog.domain_view(child).current.version) for child in below]
        lookups = sum(self._lookups[version][0] for version in versions)
        return DomainTree(levels=[*own, *above], below=len(below), lookups=lookups)

    def read(self, run_id: str, most: int, *, children: bool = False) -> WindowCounts:
        """Return what a run may read, by the rule of the real one."""
        spec = self._catalog.run(run_id).spec
        if spec.kind != "domain":
            raise Refused(400, "NoDomainRun", f"Run {run_id} trains a TaskAdapter.")
        self._catalog.require_open(run_id)
        key = f"{spec.namespace}/{spec.name}"
        view = self._catalog.domain_view(key)
        limits = {"least_tenants": LEAST_TENANTS, "days": DAYS}
        if view.current is None:
            return WindowCounts(layers_digest="", **limits)
        digest = view.current.layers.digest
        owner = f"tenant_{view.record.tenant}"
        domains = [key, *(self._children(key, digest) if children else [])]
        by_domain = {one: self._admitted(domains, one, digest, owner) for one in domains}
        admitted = sum(by_domain.values(), Counter[int]())
        theirs = []
        for child in domains[1:]:
            least = self._takes_in_from(child, view.record.tenant)
            for window, count in by_domain[child].items():
                if least is not None and admitted[window] == count >= least:
                    theirs.append(window)
        for window in theirs:
            del admitted[window]
        ordered = sorted(admitted.items(), key=lambda item: (-item[1], item[0]))
        array = window_array(dict(ordered[:most]))
        return WindowCounts(
            **array.model_dump(),
            belongs_to_child=np.array(sorted(theirs), dtype="<i8").tobytes(),
            layers_digest=digest,
            total=sum(admitted.values()),
            admitted=len(admitted),
            statistics=self.lookups_of(key, view.current.version),
            **limits,
        )

    def _admitted(self, domains: list[str], key: str, digest: str, owner: str) -> Counter[int]:
        """Return what may be read of one of ``domains``; other tenants are counted over all of them."""
        found: Counter[int] = Counter()
        for tenant, counts in self._windows[key, digest].items():
            for window, count in counts.items():
                others = {
                    who
                    for one in domains
                    for who, some in self._windows[one, digest].items()
                    if who != owner and window in some
                }
                if tenant == owner or len(others) >= LEAST_TENANTS:
                    found[window] += count
        return found

    def _children(self, parent: str, digest: str) -> list[str]:
        """Return the children with these layers; the fake does not look at their own children."""
        views = {key: self._catalog.domain_view(key) for key in self._catalog.domains}
        return sorted(
            key
            for key, view in views.items()
            if view.record.parent == parent and view.current and view.current.layers.digest == digest
        )

    def _takes_in_from(self, child: str, tenant: str) -> int | None:
        record = self._catalog.domain_view(child).record
        runs = [run for run in self._catalog.runs.values() if run.uid == record.uid]
        plot = runs[-1].spec.spec.plot if runs and record.tenant == tenant else None
        return plot.min_frequency if plot is not None and plot.refresh is not None else None
