"""What the demonstration prints when all is Ready: answers, scores, tables' use, bytes, usage and bills."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from hmi_cli.demo.figures import Figures
from hmi_cli.demo.traffic import Outcome
from hmi_cli.render.inference import Prediction, shorten
from hmi_cli.render.resources import blocking
from hmi_cli.render.tables import amount

MESSAGE_SHOWN = 48
Object = dict[str, Any]


def print_failures(console: Console, items: Sequence[Object]) -> None:
    """Say of each resource that is not Ready what keeps it from it."""
    for item in items:
        name = f"{item['kind']} {item['metadata'].get('namespace', 'default')}/{item['metadata']['name']}"
        block = blocking(item)
        told = (
            f"{block['type']}: {block['reason']}: {block.get('message', '')}"
            if block
            else "no condition says why"
        )
        console.print(f"[red]not Ready[/red]  {name}\n           {told}", soft_wrap=True)


def print_predictions(console: Console, outcomes: Sequence[Outcome]) -> None:
    """Print one held-out message a task, with its answer."""
    table = _table("Predictions, one a task", "tenant", "model", "message", "answer")
    for outcome in outcomes:
        if outcome.predictions:
            index = telling_row(outcome)
            table.add_row(
                outcome.task.tenant,
                outcome.task.model,
                shorten(outcome.task.texts[index], MESSAGE_SHOWN),
                outcome.predictions[index].shown,
            )
    console.print(table)


def telling_row(outcome: Outcome) -> int:
    """Return the answered row that shows most: of a token task the one with the most stretches."""
    rows = sorted(outcome.predictions)
    return max(rows, key=lambda index: len(outcome.predictions[index].entities), default=0)


def print_fan_out(console: Console, text: str, predictions: Sequence[Prediction]) -> None:
    """Print what several models said of one text in one request."""
    console.print(f"[bold]Fan-out[/bold], one request: “{text}”", soft_wrap=True)
    table = _table(None, "model", "answer")
    for prediction in predictions:
        table.add_row(prediction.model, prediction.shown)
    console.print(table)


def print_scores(
    console: Console, outcomes: Sequence[Outcome], adapters: dict[tuple[str, str], Object]
) -> None:
    """Print each task's held-out metric beside its gate."""
    table = _table("Quality", "tenant", "model", "metric", "gate", "validation", "held-out test", "rows")
    for outcome in outcomes:
        item = adapters[outcome.task.tenant, outcome.task.model]
        gate = item["spec"].get("gate") or {}
        measured = (item["status"].get("metrics") or {}).get(outcome.task.metric)
        score = outcome.score()
        table.add_row(
            outcome.task.tenant,
            outcome.task.model,
            outcome.task.metric,
            f"≥ {gate['minimum']:.2f}" if gate else "none (imported)",
            _figure(measured),
            _figure(score),
            str(len(outcome.task.texts)),
        )
    console.print(table)


def print_domains(console: Console, domains: Sequence[Object], figures: Figures) -> None:
    """Print how much of each domain's text its table holds, and what the traffic found in it."""
    headers = ("entries", "coverage of held-out corpus", "cosine to base", "windows asked for", "hits")
    table = _table("Lookup tables", "domain", *headers)
    for item in domains:
        name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
        status, hit_rate = item["status"], figures.hit_rate(name)
        table.add_row(
            name,
            f"{status.get('entries') or 0:,}",
            "-" if status.get("coverage") is None else f"{status['coverage']:.1%}",
            _figure((status.get("metrics") or {}).get("cosine_at_output")),
            f"{figures.lookups[name]:,}",
            "-" if hit_rate is None else f"{hit_rate:.1%}",
        )
    console.print(table)


def print_resident(console: Console, figures: Figures) -> None:
    """Print the bytes each tenant adds, and what all of them share."""
    table = _table("Resident bytes", "tenant", "in host memory", "in device slots")
    for tenant, tiers in sorted(figures.tenants.items()):
        table.add_row(tenant, amount(tiers["host"]), amount(tiers["device"]))
    table.add_row("tables, shared by all", amount(figures.shared["host"]), "", style="dim")
    console.print(table)


def print_bills(console: Console, usage: Sequence[Object], bills: Sequence[Object]) -> None:
    """Print what each tenant used and owes."""
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


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(title: str | None, *headers: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", pad_edge=False)
    for header in headers:
        table.add_column(header)
    return table
