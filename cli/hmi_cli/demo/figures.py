"""What the runtimes say of themselves: residency from the catalog, lookups from their metrics."""

import re
from collections import Counter
from dataclasses import dataclass

import httpx

from hmi_cli.admin_api import AdminApi

LOOKUP = re.compile(r"^hmi_plot_lookups_total\{(?P<labels>[^}]*)\}\s+(?P<value>\S+)", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Figures:
    """Sums over all runtimes that are not lost."""

    resident: dict[str, int]
    """Bytes by kind and tier, such as ``adapters in device memory``."""
    hit_rates: dict[str, float]
    """Share of lookups by where the window was found."""


def read_figures(api: AdminApi) -> Figures:
    """Ask for the runtimes, and each of them for its metrics; one that does not answer counts nothing."""
    resident: Counter[str] = Counter()
    lookups: Counter[str] = Counter()
    for runtime in api.runtimes():
        if runtime["lost"]:
            continue
        for entry in runtime["resident"]:
            resident[f"{entry['kind']}s, {entry['tier']}"] += entry["bytes"]
        lookups += parse_lookups(_metrics(runtime["url"]))
    total = sum(lookups.values())
    rates = {level: count / total for level, count in lookups.most_common()} if total else {}
    return Figures(dict(resident), rates)


def parse_lookups(text: str) -> Counter[str]:
    """Return the lookups of a Prometheus page, by where the window was found."""
    found: Counter[str] = Counter()
    for match in LOOKUP.finditer(text):
        labels = dict(LABEL.findall(match["labels"]))
        level, result = labels.get("level", ""), labels.get("result", "")
        found[f"{result}, {level}" if level else result] += int(float(match["value"]))
    return found


def _metrics(url: str) -> str:
    try:
        response = httpx.get(f"{url}/metrics", timeout=10, trust_env=False)
    except httpx.HTTPError:
        return ""
    return response.text if response.is_success else ""
