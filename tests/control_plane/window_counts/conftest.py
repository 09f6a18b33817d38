"""Tenants with texts, reports of runtimes about them, and runs that read the counts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from fake_window_counts import window_array, window_dict

from hmi_api.internal.window_counts import (
    DomainLookups,
    DomainWindows,
    TenantWindows,
    WindowCountReport,
    WindowCounts,
)
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.settings import WindowCountSettings
from hmi_control_plane.window_counts.merging import WindowCountMerger


@dataclass
class Traffic:
    """Reports windows as runtimes do, for the Domain acme/trade unless another is named."""

    cluster: Any
    database: Database
    sequences: Iterator[int] = field(default_factory=lambda: count(1))

    def tenant(self, name: str) -> str:
        """Return the id of a tenant, which is created if it is new."""
        self.cluster.internal("PUT", f"/tenants/{name}")
        listed = self.cluster.admin("GET", "/tenants", params={"limit": 500})["items"]
        return str(next(one["id"] for one in listed if one["name"] == name))

    def report(
        self,
        windows: dict[str, dict[int, int]],
        *,
        domain: str = "acme/trade",
        lookups: int = 0,
        hits: int = 0,
        **fields: Any,
    ) -> WindowCountReport:
        """Return a report of windows by the name of their tenant; unknown tenants are sent by name."""
        current = self.cluster.internal("GET", f"/domains/{domain}")["current"]
        tenants = [
            TenantWindows(tenant_id=self.tenant(name), **window_array(counts).model_dump())
            for name, counts in windows.items()
        ]
        one = DomainWindows(
            domain=domain,
            version=current["version"],
            layers_digest=current["layers"]["digest"],
            lookups=lookups,
            hits=hits,
            tenants=tenants,
        )
        fields = {"incarnation": "one", "sequence": next(self.sequences)} | fields
        return WindowCountReport(domains=[one], **fields)

    def send(self, report: WindowCountReport) -> None:
        """Send a report."""
        body = report.model_dump(mode="json", by_alias=True)
        self.cluster.internal("POST", "/runtimes/r1/window-counts", body)

    def sent(self, windows: dict[str, dict[int, int]], **fields: Any) -> WindowCountReport:
        """Send a new report; return it."""
        report = self.report(windows, **fields)
        self.send(report)
        return report

    def run(self, name: str = "trade", *, spec: str = "refresh") -> str:
        """Return the id of a run of a Domain."""
        return str(self.cluster.domain_run(name, spec=spec)["id"])

    def read(self, run: str, **query: Any) -> WindowCounts:
        """Read the windows as a run does."""
        found = self.cluster.internal("GET", f"/runs/{run}/window-counts", params=query)
        return WindowCounts.model_validate(found)

    def windows(self, run: str, **query: Any) -> dict[int, int]:
        """Read the windows as a run does; return only windows and counts."""
        return window_dict(self.read(run, **query))

    def lookups(self) -> tuple[int, int, float | None]:
        """Return the lookups, hits and hit rate of the Domain."""
        view = self.cluster.internal("GET", "/domains/acme/trade", params={"lookups": True})
        found = DomainLookups.model_validate(view["lookups"])
        return found.lookups, found.hits, found.hit_rate

    def merge(self, **settings: int) -> int:
        """Merge all reports with these bounds; return how many windows did not fit."""
        cut: list[int] = []
        WindowCountMerger(self.database, WindowCountSettings(**settings), on_cut=cut.append).merge()
        return sum(cut)


@pytest.fixture
def traffic(cluster: Any, database: Database) -> Traffic:
    """The Domain acme/trade is published."""
    cluster.domain()
    return Traffic(cluster, database)


@pytest.fixture
def at_least_three() -> Callable[[int], dict[str, dict[int, int]]]:
    """Windows that exactly three tenants asked for, once each."""
    return lambda window: {f"other{number}": {window: 1} for number in range(3)}
