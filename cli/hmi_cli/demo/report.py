"""The figures of the demonstration: predictions, scores, hit rates, bytes, usage and bills."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from hmi_api.resources.conditions import DomainCondition
from hmi_api.resources.domain import TableStatus
from hmi_cli.api import AdminApi
from hmi_cli.client import Client
from hmi_cli.demo.progress import title
from hmi_cli.demo.traffic import HeldOutResult
from hmi_cli.errors import CliError
from hmi_cli.render.inference import Prediction, shorten
from hmi_cli.render.output import amount
from hmi_cli.render.resources import blocking, condition


@dataclass
class Figures:
    """Sums of the statistics of all runtimes."""

    tenants: dict[str, Counter[str]] = field(default_factory=dict)
    """Bytes of adapters by tenant and tier."""
    shared: Counter[str] = field(default_factory=Counter)
    """Bytes of tables and layers, which all tenants share, by tier."""
    lookups: Counter[str] = field(default_factory=Counter)
    """Windows that were looked up, by Domain (namespace/name) and by version (namespace/name@version)."""
    hits: Counter[str] = field(default_factory=Counter)
    """Windows that a table contained."""
    found: Counter[str] = field(default_factory=Counter)
    """Windows that a table contained, or that had been computed for an earlier request."""

    def hit_rate(self, domain: str) -> float | None:
        """Return the share of a Domain's lookups that a table had; None without lookups."""
        return self._share(self.hits, domain)

    def found_rate(self, domain: str) -> float | None:
        """Return the share of a Domain's lookups that needed no computing; None without lookups."""
        return self._share(self.found, domain)

    def _share(self, counts: Counter[str], domain: str) -> float | None:
        return counts[domain] / self.lookups[domain] if self.lookups[domain] else None


def read_figures(api: AdminApi, internal_token: str) -> Figures:
    """Return the statistics of all runtimes that answer."""
    figures = Figures()
    for runtime in api.runtimes():
        if runtime["lost"]:
            continue
        with Client(runtime["url"], internal_token) as client, contextlib.suppress(CliError):
            _add(figures, client.request("GET", "/internal/v1/stats"))
    return figures


def _add(figures: Figures, stats: dict[str, Any]) -> None:
    for tenant, tiers in stats["tenants"].items():
        figures.tenants.setdefault(tenant, Counter()).update(tiers)
    for entry in stats["resident"]:
        if entry["kind"] == "table":
            figures.shared[entry["tier"]] += entry["bytes"]
    for key, domain in stats["domains"].items():
        for name in (key.partition("@")[0], key):
            figures.lookups[name] += domain["lookups"]
            levels = domain["levels"]
            figures.hits[name] += sum(levels[one] for one in levels if one.endswith("gram"))
            figures.found[name] += domain["lookups"] - levels.get("computed", 0)


MESSAGE_SHOWN = 48
Object = dict[str, Any]


def print_failures(console: Console, items: Sequence[Object]) -> None:
    """Print why each of these resources is not Ready."""
    for item in items:
        block = blocking(item)
        why = (
            f"{block['type']}: {block['reason']}: {block.get('message', '')}"
            if block
            else "no condition says why"
        )
        console.print(f"[red]not Ready[/red]  {title(item)}\n           {why}", soft_wrap=True)


def print_predictions(console: Console, results: Sequence[HeldOutResult]) -> None:
    """Print one held-out message and its prediction for each TaskAdapter."""
    table = _table("Predictions, one for each task", "tenant", "model", "message", "answer")
    for result in results:
        if result.predictions:
            held_out, index = result.held_out, best_row(result)
            text = shorten(held_out.texts[index], MESSAGE_SHOWN)
            table.add_row(held_out.tenant, held_out.model, text, result.predictions[index].shown)
    console.print(table)


def best_row(result: HeldOutResult) -> int:
    """Return the row to show: of a token classifier the one with the most entities, else the first."""
    rows = sorted(result.predictions)
    return max(rows, key=lambda index: len(result.predictions[index].entities), default=0)


def print_fan_out(console: Console, text: str, predictions: Sequence[Prediction]) -> None:
    """Print the predictions of several models for one text, from one request."""
    console.print(f"[bold]Fan-out[/bold], one request: “{text}”", soft_wrap=True)
    table = _table(None, "model", "answer")
    for prediction in predictions:
        table.add_row(prediction.model, prediction.shown)
    console.print(table)


def print_scores(
    console: Console, results: Sequence[HeldOutResult], adapters: dict[tuple[str, str], Object]
) -> None:
    """Print the held-out metric and the gate of each TaskAdapter."""
    table = _table("Quality", "tenant", "model", "metric", "gate", "validation", "held-out test", "rows")
    for result in results:
        held_out = result.held_out
        item = adapters[held_out.tenant, held_out.model]
        gate = item["spec"].get("gate") or {}
        measured = (item["status"].get("metrics") or {}).get(held_out.metric)
        table.add_row(
            *(held_out.tenant, held_out.model, held_out.metric),
            f"≥ {gate['minimum']:.2f}" if gate else "none (imported)",
            *(_figure(measured), _figure(result.score()), str(len(held_out.texts))),
        )
    console.print(table)


def print_domains(console: Console, domains: Sequence[Object], figures: Figures) -> None:
    """Print the size, coverage and hit rate of each Domain's tables."""
    headers = (
        "entries",
        "coverage of held-out corpus",
        "cosine to base",
        "lookups",
        "hit rate",
        "with recent ones",
    )
    table = _table("Lookup tables", "domain", *headers)
    for item in domains:
        name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
        status = item["status"]
        table.add_row(
            name,
            f"{status.get('entries') or 0:,}",
            _figure(status.get("coverage"), ".1%"),
            _figure((status.get("metrics") or {}).get("cosine_at_output")),
            f"{figures.lookups[name]:,}",
            _figure(figures.hit_rate(name), ".1%"),
            _figure(figures.found_rate(name), ".1%"),
        )
    console.print(table)


def print_refresh(console: Console, item: Object, before: float | None, after: float | None) -> None:
    """Print what a refresh of a Domain's table changed, and the hit rates of the same messages."""
    change = TableStatus.model_validate(item["status"]["refresh"]["tables"][0])
    console.print(f"  {change.sentence()}", soft_wrap=True)
    console.print(
        f"  hit rate of the same messages: {_figure(before, '.1%')} before, {_figure(after, '.1%')} after; "
        "no model was trained or loaded again\n",
        soft_wrap=True,
    )


def refresh_message(item: Object) -> str:
    """Return why a Domain's table is not refreshed."""
    found = condition(item, DomainCondition.REFRESHED)
    return f"{found['reason']}: {found.get('message', '')}" if found else "no condition says why"


def print_resident(console: Console, figures: Figures) -> None:
    """Print the bytes of each tenant's adapters, and of the shared tables."""
    table = _table("Resident bytes", "tenant", "in host memory", "in device slots")
    for tenant, tiers in sorted(figures.tenants.items()):
        table.add_row(tenant, amount(tiers["host"]), amount(tiers["device"]))
    table.add_row("tables, shared by all", amount(figures.shared["host"]), "", style="dim")
    console.print(table)


def print_bills(console: Console, usage: Sequence[Object], bills: Sequence[Object]) -> None:
    """Print the usage and the bill of each tenant."""
    meters = sorted({line["meter"] for line in usage})
    table = _table("Usage and bills", "tenant", *meters, "bill")
    for bill in bills:
        used = {line["meter"]: line["quantity"] for line in usage if line["tenant"] == bill["tenant"]}
        table.add_row(
            bill["tenant"],
            *(f"{used.get(meter, 0):,}" for meter in meters),
            f"{bill['total']} {bill['currency']}",
        )
    console.print(table)


def _figure(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else f"{value:{form}}"


def _table(title: str | None, *headers: str) -> Table:
    return Table(
        *headers, title=title, title_justify="left", title_style="bold", header_style="dim", pad_edge=False
    )
