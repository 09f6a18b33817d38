"""The demonstration, step by step."""

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from hmi_api.names import tenant_of
from hmi_cli.admin_api import AdminApi
from hmi_cli.client import Client
from hmi_cli.demo import report
from hmi_cli.demo.board import open_board
from hmi_cli.demo.figures import read_figures
from hmi_cli.demo.system import Running, started
from hmi_cli.demo.traffic import Outcome, read_task, send_all
from hmi_cli.demo.wait import wait_until_settled
from hmi_cli.errors import CliError, Refused
from hmi_cli.invocation import called_as
from hmi_cli.kinds import DOMAIN
from hmi_cli.manifests import Manifest, in_apply_order, load
from hmi_cli.render.inference import read_predictions
from hmi_cli.render.resources import ready_status
from hmi_cli.resource_api import ResourceApi
from hmi_cli.system.home import Home

PRICES = {
    "requests": "0.001",
    "rows": "0.0002",
    "prompt_tokens": "0.00002",
    "training_seconds": "0.01",
    "resident_byte_hours": "0.00000000001",
}
"""Price of one unit in the installation's currency; what a small shop might ask."""

KEY_NAME = "demonstration"
METERED_WITHIN_S = 20.0
POLL_S = 0.5
Object = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What the user asked of the demonstration."""

    examples: Path
    home: Home
    port: int
    limit_s: float
    keep: bool


def demonstrate(plan: Plan, console: Console) -> bool:
    """Run the demonstration; True when everything was Ready and every row had an answer."""
    begun = time.monotonic()
    _bring_imported_adapter(plan.examples, console)
    manifests = in_apply_order(load([str(plan.examples)], recursive=True))
    console.print(f"Starting the system in {plan.home.path} …")
    with started(plan.home, plan.port) as running, Client(running.url, plan.home.read_admin_key()) as client:
        console.print(f"It is up at {running.url}; applying {plan.examples}.")
        _set_prices(AdminApi(client))
        api = ResourceApi(client)
        for manifest in manifests:
            api.apply(manifest, manifest.body["metadata"].get("namespace", "default"), dry_run=False)
        with open_board(console) as board:
            items = wait_until_settled(api, board, limit_s=plan.limit_s, alive=running.alive)
        unready = [item for item in items if ready_status(item) != "True"]
        report.print_failures(console, unready)
        complete = _show_traffic(console, running, AdminApi(client), manifests, items)
        good = complete and not unready
        console.print(
            f"\nDone in {time.monotonic() - begun:.0f} s."
            if good
            else "\n[red]Not all went well; see above.[/red]"
        )
        _say_what_next(console, plan, running)
        if plan.keep:
            _wait_for_ctrl_c(running)
        return good


def _bring_imported_adapter(examples: Path, console: Console) -> None:
    """Make the PEFT folder that one of the examples imports, unless it is there."""
    folder = examples / "build" / "message-tone-lora"
    if (folder / "adapter_config.json").exists():  # what peft writes last
        return
    console.print("Training a LoRA with the peft package alone, to be imported later …")
    script = examples / "imported" / "train_with_peft.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), "--out", str(folder)],
        capture_output=True,
        text=True,
        # Idle threads sleep: on a machine that does anything else, spinning ones take twice the time.
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CliError(
            f"{script} failed: {last}", hint="`make demo` installs what it needs; or pip install -e .[demo]"
        )
    console.print(f"  {done.stdout.strip().splitlines()[-1]}", highlight=False)


def _set_prices(api: AdminApi) -> None:
    """Make a price list if there is none; before anything is used, since a price holds from its moment on."""
    if not api.prices():
        for meter, price in PRICES.items():
            api.set_price(meter, price)


def _tenants(manifests: list[Manifest]) -> dict[str, str]:
    """Return the tenant of each namespace that the manifests declare."""
    found = {}
    for manifest in manifests:
        metadata = manifest.body["metadata"]
        if manifest.body["kind"] == "Namespace":
            found[metadata["name"]] = str(tenant_of(metadata["name"], metadata.get("labels")))
    return found


def _show_traffic(
    console: Console, running: Running, api: AdminApi, manifests: list[Manifest], items: list[Object]
) -> bool:
    """Send the mixed batch to whatever is Ready and print all figures; True when nothing is missing."""
    tenants = _tenants(manifests)
    ready = [item for item in items if item["kind"] != DOMAIN.name and ready_status(item) == "True"]
    adapters = {
        (tenants.get(ns := item["metadata"]["namespace"], ns), item["metadata"]["name"]): item
        for item in ready
    }
    data = (
        next(Path(manifest.origin).parent for manifest in manifests if manifest.body["kind"] == DOMAIN.name)
        / "data"
    )
    tasks = [read_task(item, tenant, data) for (tenant, _), item in adapters.items()]
    keys = {
        tenant: str(api.create_key(tenant, KEY_NAME)["key"])
        for tenant in sorted({task.tenant for task in tasks})
    }

    rows = sum(len(task.texts) for task in tasks)
    console.print(
        f"\nSending {rows} held-out messages of {len(keys)} tenants to {len(tasks)} models, mixed, at once …"
    )
    before = time.monotonic()
    outcomes = asyncio.run(send_all(running.url, keys, tasks))
    seconds = time.monotonic() - before
    console.print(f"  answered in {seconds:.1f} s ({rows / seconds:.0f} a second)\n")
    for outcome in outcomes:
        for failure in sorted(set(outcome.failures)):
            console.print(
                f"[red]no answer[/red]  {outcome.task.tenant}/{outcome.task.model}: {failure}", soft_wrap=True
            )

    report.print_predictions(console, outcomes)
    fanned = _fan_out(console, running, keys, outcomes)
    report.print_scores(console, outcomes, adapters)
    figures = read_figures(api, running.home.internal_token())
    domains = [item for item in items if item["kind"] == DOMAIN.name and ready_status(item) == "True"]
    report.print_domains(console, domains, figures)
    report.print_resident(console, figures)
    usage = _metered(api, sum(len(outcome.predictions) for outcome in outcomes))
    report.print_bills(console, usage, [api.bill(tenant, {}) for tenant in keys])
    return fanned and bool(outcomes) and all(outcome.complete for outcome in outcomes)


def _metered(api: AdminApi, rows: int) -> list[Object]:
    """Return the usage, once what was answered is in the ledger: events are durable at once, summed soon."""
    ends = time.monotonic() + METERED_WITHIN_S
    while True:
        lines = api.usage({"group_by": ["meter", "tenant"]})
        counted = sum(line["quantity"] for line in lines if line["meter"] == "rows")
        if counted >= rows or time.monotonic() > ends:
            return lines
        time.sleep(POLL_S)


def _fan_out(console: Console, running: Running, keys: dict[str, str], outcomes: list[Outcome]) -> bool:
    """Ask all models of the tenant that has most of them about one text, in one request."""
    by_tenant: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_tenant.setdefault(outcome.task.tenant, []).append(outcome)
    if not by_tenant:
        return False
    tenant, asked = max(by_tenant.items(), key=lambda item: len(item[1]))
    richest = max(asked, key=lambda outcome: outcome.task.tokens)
    text = richest.task.texts[report.telling_row(richest)]
    with Client(running.url, keys[tenant]) as client:
        try:
            answer = client.ask(
                "POST",
                "/classify",
                json={"models": [outcome.task.model for outcome in asked], "input": [text]},
            )
        except Refused as error:
            console.print(f"[red]no answer[/red]  fan-out: {error.message}", soft_wrap=True)
            return False
    predictions = read_predictions(answer)
    report.print_fan_out(console, text, predictions)
    return len(predictions) == len(asked) and not any(prediction.error for prediction in predictions)


def _say_what_next(console: Console, plan: Plan, running: Running) -> None:
    home = plan.home.path
    command = called_as(home)
    up = "It keeps running until Ctrl-C." if plan.keep else f"Keep it running with: {command} up"
    lines = [
        f"\n[bold]{up}[/bold]",
        f"What was trained stays in {home} and is not trained again. Then try",
        f"  {command} get all -A -o wide",
        f"  {command} describe ta guest-topic -n seaview",
        f'  {command} classify -t seaview guest-topic "The shower in room 5 is cold"',
        f'  {command} classify -t seaview -m guest-topic,guest-urgency,stay-details "We come Friday at 7 pm"',
        f"  {command} usage && {command} bill seaview",
        f"  the interface, in the browser: {running.url if plan.keep else 'http://127.0.0.1:8080'}/docs",
    ]
    console.print("\n".join(lines), soft_wrap=True)


def _wait_for_ctrl_c(running: Running) -> None:
    try:
        running.process.wait()
    except KeyboardInterrupt:
        return
