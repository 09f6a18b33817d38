"""Domains and TaskAdapters as tables, and in full for ``hmi describe``."""

from collections.abc import Iterator, Sequence
from typing import Any

from hmi_api.resources.common import DataRead
from hmi_api.resources.conditions import SUMMARIES, DomainCondition
from hmi_api.resources.domain import TableStatus
from hmi_api.resources.kinds import DOMAIN, Kind
from hmi_cli.render.output import NONE, age, amount, dump_yaml, format_table

Object = dict[str, Any]


def resource_table(kind: Kind, items: Sequence[Object], *, wide: bool, namespaces: bool) -> str:
    """Return the printer columns of the objects of one kind."""
    headers = [*(["NAMESPACE"] if namespaces else []), "NAME", *columns(kind, wide=wide)]
    rows = [
        [
            *([item["metadata"].get("namespace", "default")] if namespaces else []),
            item["metadata"]["name"],
            *_cells(kind, item, wide=wide),
        ]
        for item in items
    ]
    return format_table(headers, rows)


def columns(kind: Kind, *, wide: bool) -> list[str]:
    """Return the headers after NAME."""
    own = ["ENTRIES", "COVERAGE", "HIT-RATE"] if kind is DOMAIN else ["DOMAIN", "METRIC"]
    return ["PHASE", "READY", *own, "VERSION", "PROGRESS", *(["REASON"] if wide else []), "AGE"]


def _cells(kind: Kind, item: Object, *, wide: bool) -> list[str]:
    status = item.get("status") or {}
    if kind is DOMAIN:
        entries = status.get("entries")
        shares = [status.get("coverage"), status.get("hitRate")]
        own = [
            NONE if entries is None else str(entries),
            *(NONE if share is None else f"{share:.0%}" for share in shares),
        ]
    else:
        ref = (item.get("spec") or {}).get("domainRef") or {}
        domain = "/".join(str(ref[part]) for part in ("namespace", "name") if ref.get(part))
        own = [status.get("domain") or domain or NONE, gate_cell(item)]
    return [
        status.get("phase") or "Pending",
        ready_status(item),
        *own,
        str(status.get("version") or NONE),
        status.get("progress") or "-",
        *([reason(item)] if wide else []),
        age(item["metadata"].get("creationTimestamp")),
    ]


def gate_cell(item: Object) -> str:
    """Return the metric of the gate and its minimum; without a gate, the main metric."""
    gate = (item.get("spec") or {}).get("gate")
    metrics = (item.get("status") or {}).get("metrics") or {}
    if gate:
        measured = metrics.get(gate["metric"])
        return f"{gate['metric']} {'-' if measured is None else f'{measured:.3f}'}/{gate['minimum']:.2f}"
    name = next((name for name in ("entity_f1", "accuracy") if name in metrics), None)
    return f"{name} {metrics[name]:.3f}" if name else NONE


def conditions(item: Object) -> list[Object]:
    """Return the conditions of an object's status."""
    return list((item.get("status") or {}).get("conditions") or [])


def condition(item: Object, type_: str) -> Object | None:
    """Return the condition of that type, or None."""
    return next((found for found in conditions(item) if found["type"] == type_), None)


def ready_status(item: Object) -> str:
    """Return True, False or Unknown: the status of the condition Ready."""
    ready = condition(item, "Ready")
    return str(ready["status"]) if ready else "Unknown"


def blocking(item: Object) -> Object | None:
    """Return the condition that keeps an object from Ready: the first that is False, else Ready itself."""
    false = [found for found in conditions(item) if found["status"] == "False"]
    return next(
        (found for found in false if found["type"] not in SUMMARIES),
        next((found for found in false if found["type"] == DomainCondition.READY), None),
    )


def reason(item: Object) -> str:
    """Return the reason of the blocking condition, else of Ready."""
    found = blocking(item) or condition(item, "Ready")
    return str(found["reason"]) if found else NONE


def describe(kind: Kind, item: Object) -> str:
    """Return an object in full, in the layout of ``kubectl describe``."""
    return "\n".join([*_head(kind, item), *_spec(item), *_status(item), *_conditions(item)])


def _head(kind: Kind, item: Object) -> Iterator[str]:
    metadata = item["metadata"]
    for title, value in (
        ("Name", metadata["name"]),
        ("Namespace", metadata.get("namespace", "default")),
        ("Kind", kind.name),
        ("Labels", _pairs(metadata.get("labels"))),
        ("Annotations", _pairs(metadata.get("annotations"))),
        ("Generation", metadata.get("generation", 1)),
        (
            "Created",
            f"{metadata.get('creationTimestamp') or NONE} ({age(metadata.get('creationTimestamp'))} ago)",
        ),
    ):
        yield f"{title + ':':<14}{value}"
    if metadata.get("deletionTimestamp"):
        yield f"{'Deleting:':<14}since {metadata['deletionTimestamp']}"


def _pairs(values: dict[str, str] | None) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted((values or {}).items())) or NONE


def _spec(item: Object) -> Iterator[str]:
    yield "Spec:"
    text = dump_yaml(item.get("spec") or {})
    yield from (f"  {line}" for line in text.rstrip().splitlines())


def _status(item: Object) -> Iterator[str]:
    status = item.get("status") or {}
    yield "Status:"
    for key in (
        "phase",
        "version",
        "domain",
        "entries",
        "coverage",
        "hitRate",
        "progress",
        "runRef",
        "observedGeneration",
    ):
        if status.get(key) is not None:
            yield f"  {key + ':':<20}{status[key]}"
    if artifact := status.get("artifact"):
        yield f"  {'artifact:':<20}{artifact['digest']} ({amount(artifact['bytes'])})"
    for name, value in sorted((status.get("metrics") or {}).items()):
        yield f"  {name + ':':<20}{value:.4f}"
    yield from _refresh(status.get("refresh") or {})
    yield from _levels(status)
    for read in status.get("data") or []:
        yield f"  {'data read:':<20}{read['uri']}"
        yield f"  {'':<20}{DataRead.model_validate(read).sentence()}"


def _levels(status: Object) -> Iterator[str]:
    """Yield the tables that a Domain looks windows up in, and what sharing its own saves."""
    for at, level in enumerate(status.get("levels") or []):
        entries = "" if level.get("entries") is None else f"{level['entries']:,} windows, "
        name = level.get("domain") or "a deleted Domain"
        yield f"  {'looks up in:' if at == 0 else '':<20}{name}: {entries}{amount(level['bytes'])}"
    if shared := status.get("shared"):
        saved = amount(shared["savedBytesAtMost"])
        yield f"  {'shared with:':<20}{shared['domains']} Domains below, which saves at most {saved}"


def _refresh(refresh: Object) -> Iterator[str]:
    """Yield when a Domain's table is refreshed, and the tables that are kept."""
    for title, key in (("last refresh:", "lastRefresh"), ("next refresh:", "nextTime")):
        if refresh.get(key):
            yield f"  {title:<20}{refresh[key]}"
    for at, table in enumerate(refresh.get("tables") or []):
        text = TableStatus.model_validate(table).sentence()
        yield f"  {'tables:' if at == 0 else '':<20}{text}"


def _conditions(item: Object) -> Iterator[str]:
    yield "Conditions:"
    rows = [
        [
            found["type"],
            str(found["status"]),
            found["reason"],
            age(found.get("lastTransitionTime")),
            found.get("message") or "",
        ]
        for found in conditions(item)
    ]
    table = format_table(["TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"], rows) if rows else NONE
    yield from (f"  {line}" for line in table.splitlines())
