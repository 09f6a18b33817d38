"""Runtimes as a table, and in full for ``hmi describe runtime``."""

from collections.abc import Iterator, Sequence
from typing import Any

from hmi_cli.render.output import NONE, age, amount, format_table

Answer = dict[str, Any]

_SOURCES = {
    "Only": "this machine runs nothing else that HMI_PRECISION allows",
    "Measured": "measured by this runtime",
    "Pool": "measured by another runtime of the pool, or before this one restarted",
    "Cache": "what this runtime used before; the pool's records could not be read",
}


def runtimes_table(runtimes: Sequence[Answer]) -> str:
    """Return one line for each runtime."""
    rows = [
        [
            runtime["id"],
            runtime.get("pool") or NONE,
            _state(runtime),
            runtime["device"],
            ", ".join(dict.fromkeys(_kernel(one["choice"]) for one in runtime.get("engines", []))) or NONE,
            str(runtime["queueDepth"]),
            age(runtime["registeredAt"]),
        ]
        for runtime in runtimes
    ]
    return format_table(["NAME", "POOL", "STATE", "DEVICE", "PRECISION", "QUEUE", "AGE"], rows)


def describe_runtime(runtime: Answer) -> str:
    """Return a runtime in full, with what its base models' upper layers are computed in, and why."""
    return "\n".join([*_head(runtime), *_memory(runtime), *_engines(runtime)])


def _head(runtime: Answer) -> Iterator[str]:
    for title, value in (
        ("Name", runtime["id"]),
        ("Pool", runtime.get("pool") or NONE),
        ("State", _state(runtime)),
        ("Device", runtime["device"]),
        ("Processor", runtime.get("processor") or NONE),
        ("Address", runtime["url"]),
        ("Registered", f"{runtime['registeredAt']} ({age(runtime['registeredAt'])} ago)"),
        ("Heartbeat", f"{age(runtime['heartbeatAt'])} ago"),
        ("Queue", f"{runtime['queueDepth']} rows"),
    ):
        yield f"{title + ':':<14}{value}"


def _state(runtime: Answer) -> str:
    return "Lost" if runtime["lost"] else "Draining" if runtime["draining"] else "Running"


def _memory(runtime: Answer) -> Iterator[str]:
    yield "Memory:"
    for title, name in (("capacity", "capacityBytes"), ("placed", "placedBytes"), ("free", "freeBytes")):
        yield f"  {title + ':':<20}{amount(runtime[name])}"
    for entry in runtime["resident"]:
        yield f"  {entry['kind'] + ' ' + entry['tier'] + ':':<20}{amount(entry['bytes'])}"


def _engines(runtime: Answer) -> Iterator[str]:
    engines = runtime.get("engines") or []
    yield "Base models:" if engines else f"{'Base models:':<14}{NONE}"
    for engine in engines:
        choice = engine["choice"]
        recorded = "" if engine["recorded"] or engine["source"] == "Only" else "; not recorded for the pool"
        yield f"  {engine['base']}, split at {engine['split']}"
        yield f"    {'precision:':<18}{_kernel(choice)} (HMI_PRECISION {engine['requested']})"
        yield f"    {'chosen:':<18}{_SOURCES.get(engine['source'], engine['source'])}{recorded}"
        if choice.get("candidates"):
            yield f"    {'compared on:':<18}{choice.get('sample') or NONE}"
            rows = [_candidate(one, choice) for one in choice["candidates"]]
            table = format_table(["CANDIDATE", "MS", "COSINE", "AGREEMENT", "RESULT"], rows)
            yield from (f"    {line}" for line in table.splitlines())


def _kernel(named: Answer) -> str:
    return f"{named['precision']}/{named['kernel']}"


def _candidate(one: Answer, choice: Answer) -> list[str]:
    taken = "taken" if _kernel(one) == _kernel(choice) else "slower"
    return [
        _kernel(one),
        _number(one.get("milliseconds"), 2),
        _number(one.get("cosine"), 4),
        _number(one.get("agreement"), 3),
        f"refused: {one['refused']}" if one.get("refused") and taken != "taken" else taken,
    ]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
