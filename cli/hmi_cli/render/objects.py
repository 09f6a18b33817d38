"""``-o json`` and ``-o yaml``: objects exactly as the server gave them."""

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import yaml

from hmi_api.resources.yaml_reader import is_plain_text


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
    return dump_yaml(value)


def dump_yaml(value: Any) -> str:
    """Return a value as YAML that means the same to kubectl and to ``hmi apply``."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True).rstrip()


class _Dumper(yaml.SafeDumper):
    """Puts quotes around text that would be read as a boolean or a number, such as y and 1e3."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = None if is_plain_text(value) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
