"""``-o json`` and ``-o yaml``: objects exactly as the server gave them."""

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import yaml


class Output(StrEnum):
    """What ``-o`` takes."""

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
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip()
