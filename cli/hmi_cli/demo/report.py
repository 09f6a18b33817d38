"""What the demonstration prints when all is Ready: answers, scores, tables' use, bytes, usage and bills."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from hmi_cli.demo.traffic import Outcome
from hmi_cli.render.inference import Prediction, shorten
from hmi_cli.render.resources import blocking
from hmi_cli.render.tables import amount

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
            index = _telling(outcome)
            table.add_row(
                outcome.task.tenant,
                outcome.task.model,
                shorten(outcome.task.texts[index]),
                outcome.predictions[index].shown,
            )
    console.print(table)


def _telling(outcome: Outcome) -> int:
    """Return the answered row that shows most: of a token task the one with the most stretches."""
    return max(sorted(outcome.predictions), key=lambda index: len(outcome.predictions[index].entities))


def print_fan_out(console: Console, text: str, predictions: Sequence[Prediction]) -> None:
    """Print what several models said of one text in one request."""
    table = _table(f"Fan-out, one request: “{shorten(text, 80)}”", "model", "answer")
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
            "-" if measured is None else f"{measured:.3f}",
            "-" if score is None else f"{score:.3f}",
            str(len(outcome.task.texts)),
        )
    console.print(table)


def print_domains(console: Console, domains: Sequence[Object], hit_rates: dict[str, float]) -> None:
    """Print how much of each domain's text its table holds, and what traffic found in it."""
    table = _table("Lookup tables", "domain", "entries", "coverage of held-out corpus", "table", "loss")
    for item in domains:
        status = item["status"]
        table.add_row(
            f"{item['metadata']['namespace']}/{item['metadata']['name']}",
            f"{status.get('entries') or 0:,}",
            "-" if status.get("coverage") is None else f"{status['coverage']:.1%}",
            amount((status.get("artifact") or {}).get("bytes", 0)),
            ", ".join(f"{name} {value:.3f}" for name, value in sorted((status.get("metrics") or {}).items())),
        )
    console.print(table)
    for level, share in hit_rates.items():
        console.print(f"  of the windows that the traffic asked for, {share:.1%} were {level}")


def print_resident(console: Console, adapters: Sequence[Object], shared: dict[str, int]) -> None:
    """Print the bytes each tenant adds, and what all of them share."""
    table = _table("Resident bytes", "tenant", "adapters", "bytes")
    held: dict[str, list[int]] = defaultdict(list)
    for item in adapters:
        held[item["metadata"]["namespace"]].append((item["status"].get("artifact") or {}).get("bytes", 0))
    for tenant, sizes in sorted(held.items()):
        table.add_row(tenant, str(len(sizes)), amount(sum(sizes)))
    for name, size in sorted(shared.items()):
        table.add_row(f"runtime: {name}", "", amount(size), style="dim")
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


def _table(title: str, *headers: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", pad_edge=False)
    for header in headers:
        table.add_column(header)
    return table
