"""Output formats: tables as kubectl prints them (never cut), JSON and YAML."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

import yaml

from hmi_api.resources.yaml_reader import is_plain_text

T = TypeVar("T")
NONE = "<none>"
GAP = "   "


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text; every column is as wide as its widest cell."""
    lines = [list(headers), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    return "\n".join(
        GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def age(timestamp: str | None, now: datetime | None = None) -> str:
    """Return the age of an RFC 3339 time, as in kubectl: 41s, 5m, 3h, 12d."""
    if not timestamp:
        return NONE
    then = datetime.fromisoformat(timestamp.replace("Z", "+00:00"))
    seconds = max(0, int(((now or datetime.now(UTC)) - then).total_seconds()))
    if seconds < 120:
        return f"{seconds}s"
    if seconds < 3 * 3600:
        return f"{seconds // 60}m"
    if seconds < 2 * 86400:
        return f"{seconds // 3600}h"
    return f"{seconds // 86400}d"


def amount(value: int | float) -> str:
    """Return bytes with a suitable binary unit."""
    size = float(value)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


class Output(StrEnum):
    """Values of ``-o``."""

    JSON = "json"
    YAML = "yaml"
    WIDE = "wide"


def dump_objects(items: Sequence[Any], output: Output, *, single: bool) -> str:
    """Return one object, or many under a ``List``, as JSON or YAML."""
    return dump_value(
        items[0] if single else {"apiVersion": "v1", "kind": "List", "items": list(items)}, output
    )


def dump_value(value: Any, output: Output) -> str:
    """Return any answer as JSON or YAML."""
    if output is Output.JSON:
        return json.dumps(value, indent=2, ensure_ascii=False)
    return dump_yaml(value)


def format_answer(answer: T, output: Output | None, table: Callable[[T], str]) -> str:
    """Return an answer as JSON or YAML, or by ``table``."""
    return dump_value(answer, output) if output in (Output.JSON, Output.YAML) else table(answer)


def dump_yaml(value: Any) -> str:
    """Return a value as YAML that means the same to kubectl and to ``hmi apply``."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True).rstrip()


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML readers would take for a boolean or a number, such as y and 1e3."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = None if is_plain_text(value) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
