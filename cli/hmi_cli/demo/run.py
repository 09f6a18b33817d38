"""The demonstration, step by step, on `hmi up` as a child process."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from hmi_api.names import REFRESH_ANNOTATION, tenant_of
from hmi_api.resources.kinds import DOMAIN
from hmi_cli.api import AdminApi, ResourceApi
from hmi_cli.client import Client
from hmi_cli.context import called_as
from hmi_cli.demo import report
from hmi_cli.demo.progress import open_progress, wait_until_settled
from hmi_cli.demo.report import read_figures
from hmi_cli.demo.traffic import HeldOutResult, HeldOutSet, read_held_out, send_all
from hmi_cli.errors import ApiError, CliError
from hmi_cli.manifests import Manifest, in_apply_order, load
from hmi_cli.render.inference import read_predictions
from hmi_cli.render.resources import ready_status
from hmi_cli.system.home import HomeFolder
from hmi_operator.embedded.child_process import tethered

START_LIMIT_S = 120.0
STOP_LIMIT_S = 40.0
PRICES = {
    "requests": "0.001",
    "rows": "0.0002",
    "prompt_tokens": "0.00002",
    "training_seconds": "0.01",
    "resident_byte_hours": "0.00000000001",
}
"""Prices of one unit, in the installation's currency."""
KEY_NAME = "demonstration"
LEAST_TENANTS = "HMI_WINDOW_COUNTS__LEAST_TENANTS"
WINDOW_COUNTS = {
    "HMI_WINDOW_COUNTS_SECONDS": "1",
    "HMI_WINDOW_COUNTS__MERGE_SECONDS": "1",
    LEAST_TENANTS: "1",
}
"""Settings of the demo: window counts are merged at once, and include tenants that do not own the Domain."""
REFRESH_LIMIT_S = 90.0
USAGE_LIMIT_S = 20.0
POLL_S = 0.5
Object = dict[str, Any]


@dataclass
class RunningSystem:
    """`hmi up` as a child process."""

    home: HomeFolder
    url: str
    process: "subprocess.Popen[bytes]"

    def alive(self) -> bool:
        """Return whether it is still running."""
        return self.process.poll() is None


@contextlib.contextmanager
def run_system(home: HomeFolder, port: int) -> Iterator[RunningSystem]:
    """Start `hmi up`, wait until it answers, and stop it at the end."""
    home.create()
    (home.path / "url").unlink(missing_ok=True)
    log = home.logs / "up.log"
    command = [sys.executable, "-m", "hmi_cli.main", "--home", str(home.path), "up", "--port", str(port)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            tethered(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**WINDOW_COUNTS, **os.environ},
        )
    try:
        yield RunningSystem(home, _wait_for_url(home, process), process)
    finally:
        _stop(process)


def _wait_for_url(home: HomeFolder, process: "subprocess.Popen[bytes]") -> str:
    ends = time.monotonic() + START_LIMIT_S
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise CliError(
                f"`hmi up` ended with {process.returncode}: {_last_line(home)}",
                hint=f"its log: {home.logs}/up.log",
            )
        url = home.read_url()
        if url and _answers(url):
            return url
        time.sleep(0.1)
    raise CliError(
        f"`hmi up` did not answer within {START_LIMIT_S:.0f} s", hint=f"its log: {home.logs}/up.log"
    )


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/openapi.json", timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _last_line(home: HomeFolder) -> str:
    lines = (home.logs / "up.log").read_text(errors="replace").split("\n")
    lines = [line for line in lines if line.strip()] or ["it logged nothing"]
    return next((line for line in reversed(lines) if line.startswith("error:")), lines[-1])


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class DemoOptions:
    """Options of the demonstration."""

    examples: Path
    home: HomeFolder
    port: int
    limit_s: float
    keep: bool


def run_demo(options: DemoOptions, console: Console) -> bool:
    """Run the demonstration; return whether everything became Ready and every row got a prediction."""
    started = time.monotonic()
    _train_imported_adapter(options.examples, console)
    manifests = in_apply_order(load([str(options.examples)], recursive=True))
    console.print(f"Starting the system in {options.home.path} …")
    with (
        run_system(options.home, options.port) as running,
        Client(running.url, options.home.read_admin_key()) as client,
    ):
        console.print(f"It is up at {running.url}; applying {options.examples}.")
        admin, api = AdminApi(client), ResourceApi(client)
        if not admin.prices():  # before any usage, since a price is valid from then on
            for meter, price in PRICES.items():
                admin.set_price(meter, price)
        for manifest in manifests:
            api.apply(manifest, manifest.body["metadata"].get("namespace", "default"), dry_run=False)
        with open_progress(console) as show:
            items = wait_until_settled(api, show, limit_s=options.limit_s, alive=running.alive)
        unready = [item for item in items if ready_status(item) != "True"]
        report.print_failures(console, unready)
        complete = _show_traffic(console, running, admin, manifests, items)
        good = complete and not unready
        console.print(
            f"\nDone in {time.monotonic() - started:.0f} s."
            if good
            else "\n[red]Not all went well; see above.[/red]"
        )
        _print_next_steps(console, options, running)
        if options.keep:
            with contextlib.suppress(KeyboardInterrupt):
                running.process.wait()
        return good


def _train_imported_adapter(examples: Path, console: Console) -> None:
    """Train the LoRA that one of the examples imports, unless it exists."""
    folder = examples.parent / "build" / "message-tone-lora"
    if (folder / "adapter_config.json").exists():  # what peft writes last
        return
    console.print("Training a LoRA with the peft package alone, to be imported later …")
    script = examples / "imported" / "train_with_peft.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), "--out", str(folder)],
        capture_output=True,
        text=True,
        # Idle threads that spin would double the time on a busy machine.
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise CliError(
            f"{script} failed: {last}", hint="`make demo` installs what it needs; or pip install -e .[demo]"
        )
    console.print(f"  {done.stdout.strip().splitlines()[-1]}", highlight=False)


def _tenants(manifests: list[Manifest]) -> dict[str, str]:
    """Return the tenant of each namespace that the manifests declare."""
    namespaces = [one.body["metadata"] for one in manifests if one.body["kind"] == "Namespace"]
    return {one["name"]: tenant_of(one["name"], one.get("labels")) for one in namespaces}


def _show_traffic(
    console: Console, running: RunningSystem, api: AdminApi, manifests: list[Manifest], items: list[Object]
) -> bool:
    """Send the mixed traffic to what is Ready and print all figures; return whether none is missing."""
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
    sets = [read_held_out(item, tenant, data) for (tenant, _), item in adapters.items()]
    keys = {
        tenant: str(api.create_key(tenant, KEY_NAME)["key"])
        for tenant in sorted({held_out.tenant for held_out in sets})
    }

    rows = sum(len(held_out.texts) for held_out in sets)
    console.print(
        f"\nSending {rows} held-out messages of {len(keys)} tenants to {len(sets)} models, mixed, at once …"
    )
    before = time.monotonic()
    results = asyncio.run(send_all(running.url, keys, sets))
    seconds = time.monotonic() - before
    console.print(f"  answered in {seconds:.1f} s ({rows / seconds:.0f} a second)\n")
    for result in results:
        name = f"{result.held_out.tenant}/{result.held_out.model}"
        for failure in sorted(set(result.failures)):
            console.print(f"[red]no answer[/red]  {name}: {failure}", soft_wrap=True)

    report.print_predictions(console, results)
    fanned = _fan_out(console, running, keys, results)
    report.print_scores(console, results, adapters)
    figures = read_figures(api, running.home.internal_token())
    domains = [item for item in items if item["kind"] == DOMAIN.name and ready_status(item) == "True"]
    report.print_domains(console, domains, figures)
    refreshed = _show_refresh(console, running, api, domains, adapters, keys, sets)
    report.print_resident(console, figures)
    usage = _wait_for_usage(api, sum(len(result.predictions) for result in results))
    report.print_bills(console, usage, [api.bill(tenant, {}) for tenant in keys])
    return fanned and refreshed and bool(results) and all(result.complete for result in results)


def _show_refresh(
    console: Console,
    running: RunningSystem,
    admin: AdminApi,
    domains: list[Object],
    adapters: dict[tuple[str, str], Object],
    keys: dict[str, str],
    sets: list[HeldOutSet],
) -> bool:
    """Refresh the first Domain with plot.refresh and send its messages again; return whether it worked."""
    found = next((one for one in domains if (one["spec"].get("plot") or {}).get("refresh")), None)
    if found is None:
        return True
    namespace, name = (found["metadata"][field] for field in ("namespace", "name"))
    key, before = f"{namespace}/{name}", int(found["status"]["version"])
    console.print(f"Refreshing the table of {key} from this traffic …")
    least = os.environ.get(LEAST_TENANTS, WINDOW_COUNTS[LEAST_TENANTS])
    console.print(
        f"  {LEAST_TENANTS} is {least} here, so that the windows of one tenant come in; by default, 3, a "
        "window comes in if the Domain's own tenant or three others looked it up",
        soft_wrap=True,
        highlight=False,
    )
    with Client(running.url, running.home.read_admin_key()) as client:
        item = _refreshed(ResourceApi(client), namespace, name, before)
    version = int(item["status"]["version"])
    if version == before:
        console.print(f"[red]not refreshed[/red]  {report.refresh_message(item)}", soft_wrap=True)
        return False
    ref = {"name": name, "namespace": namespace}
    users = {user for user, one in adapters.items() if one["spec"]["domainRef"] == ref}
    asyncio.run(send_all(running.url, keys, [one for one in sets if (one.tenant, one.model) in users]))
    figures = read_figures(admin, running.home.internal_token())
    rates = [figures.hit_rate(f"{key}@{number}") for number in (before, version)]
    report.print_refresh(console, item, *rates)
    return True


def _refreshed(api: ResourceApi, namespace: str, name: str, version: int) -> Object:
    """Request a refresh; return the Domain once it has another version than ``version``, or after a limit."""
    ends = time.monotonic() + REFRESH_LIMIT_S
    api.annotate(DOMAIN, namespace, name, REFRESH_ANNOTATION, str(time.time_ns()))
    while True:
        item = api.get(DOMAIN, namespace, name)
        if int(item["status"]["version"]) != version or time.monotonic() > ends:
            return item
        time.sleep(POLL_S)


def _wait_for_usage(api: AdminApi, rows: int) -> list[Object]:
    """Return the usage once all rows are counted; events reach the catalog with a short delay."""
    ends = time.monotonic() + USAGE_LIMIT_S
    while True:
        lines = api.usage({"group_by": ["meter", "tenant"]})
        counted = sum(line["quantity"] for line in lines if line["meter"] == "rows")
        if counted >= rows or time.monotonic() > ends:
            return lines
        time.sleep(POLL_S)


def _fan_out(
    console: Console, running: RunningSystem, keys: dict[str, str], results: list[HeldOutResult]
) -> bool:
    """Send one text to all models of the tenant with the most models, in one request."""
    by_tenant: dict[str, list[HeldOutResult]] = {}
    for result in results:
        by_tenant.setdefault(result.held_out.tenant, []).append(result)
    if not by_tenant:
        return False
    tenant, chosen = max(by_tenant.items(), key=lambda item: len(item[1]))
    richest = max(chosen, key=lambda result: result.held_out.tokens)
    text = richest.held_out.texts[report.best_row(richest)]
    with Client(running.url, keys[tenant]) as client:
        try:
            answer = client.request(
                "POST",
                "/classify",
                json={"models": [result.held_out.model for result in chosen], "input": [text]},
            )
        except ApiError as error:
            console.print(f"[red]no answer[/red]  fan-out: {error.message}", soft_wrap=True)
            return False
    predictions = read_predictions(answer)
    report.print_fan_out(console, text, predictions)
    return len(predictions) == len(chosen) and not any(prediction.error for prediction in predictions)


def _print_next_steps(console: Console, options: DemoOptions, running: RunningSystem) -> None:
    home = options.home.path
    command = called_as(home)
    up = "It keeps running until Ctrl-C." if options.keep else f"Keep it running with: {command} up"
    lines = [
        f"\n[bold]{up}[/bold]",
        f"What was trained stays in {home} and is not trained again. Then try",
        f"  {command} get all -A -o wide",
        f"  {command} describe ta guest-topic -n seaview",
        f'  {command} classify -t seaview guest-topic "The shower in room 5 is cold"',
        f'  {command} classify -t seaview -m guest-topic,guest-urgency,stay-details "We come Friday at 7 pm"',
        f"  {command} usage && {command} bill seaview",
        f"  the interface, in the browser: {running.url if options.keep else 'http://127.0.0.1:8080'}/docs",
    ]
    console.print("\n".join(lines), soft_wrap=True)
