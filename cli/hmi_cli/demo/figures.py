"""What the runtimes say of themselves: bytes by tenant, and how the lookup tables were hit."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hmi_cli.admin_api import AdminApi
from hmi_cli.client import Client
from hmi_cli.errors import CliError


@dataclass
class Figures:
    """Sums over all runtimes that answer."""

    tenants: dict[str, Counter[str]] = field(default_factory=dict)
    """Bytes of adapters by tenant and tier."""
    shared: Counter[str] = field(default_factory=Counter)
    """Bytes of tables and layers, which all tenants share, by tier."""
    lookups: Counter[str] = field(default_factory=Counter)
    """Windows that traffic asked for, by domain (namespace/name)."""
    hits: Counter[str] = field(default_factory=Counter)
    """Those of them that a table held."""

    def hit_rate(self, domain: str) -> float | None:
        """Return the share of a domain's lookups that a table answered; None when there were none."""
        return self.hits[domain] / self.lookups[domain] if self.lookups[domain] else None


def read_figures(api: AdminApi, internal_token: str) -> Figures:
    """Ask every runtime that the control plane knows; one that does not answer counts nothing."""
    figures = Figures()
    for runtime in api.runtimes():
        if runtime["lost"]:
            continue
        with Client(runtime["url"], internal_token) as client:
            try:
                _add(figures, client.ask("GET", "/internal/v1/stats"))
            except CliError:
                continue
    return figures


def _add(figures: Figures, stats: dict[str, Any]) -> None:
    for tenant, tiers in stats["tenants"].items():
        figures.tenants.setdefault(tenant, Counter()).update(tiers)
    for entry in stats["resident"]:
        if entry["kind"] == "table":
            figures.shared[entry["tier"]] += entry["bytes"]
    for key, domain in stats["domains"].items():
        name = key.partition("@")[0]
        figures.lookups[name] += domain["lookups"]
        figures.hits[name] += round(domain["lookups"] * domain["hit_rate"])
