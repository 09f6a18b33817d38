"""The reference page of both kinds, generated from the types: ``python -m hmi_api.resources.reference``."""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from hmi_api.names import (
    API_VERSION,
    REFRESH_ANNOTATION,
    RETRAIN_ANNOTATION,
    TABLE_VERSION_ANNOTATION,
    TENANT_LABEL,
)
from hmi_api.resources.conditions import DocumentedEnum, DomainCondition, Phase, TaskAdapterCondition
from hmi_api.resources.crd import structural_schema
from hmi_api.resources.kinds import KINDS
from hmi_api.resources.reasons import GROUPS, Reason

_HEADER = f"""# Resources

*Generated from the types by `python -m hmi_api.resources.reference > docs/resources.md`.*

Two kinds of `{API_VERSION}`, both namespaced: [`Domain`](#domain) (short name `dom`) and
[`TaskAdapter`](#taskadapter) (`ta`). The same YAML goes to `hmi apply` and to `kubectl apply`.

A namespace's tenant is its label `{TENANT_LABEL}`, else its own name. A changed spec makes a new version
while the old one serves. Rows corrected in place do not change the spec: give the annotation
`{RETRAIN_ANNOTATION}` a new value to train again.

A spec that is changed back is not trained again: the version that was trained from it and passed its gate
is published again under the next number, with its metrics. For a TaskAdapter that is the same `spec` (but for
`serving`, `resources` and `suspend`) on the same layers of its Domain; for a Domain the same `spec` (but for
`sharing`, `resources`, `suspend` and `plot.refresh`) on the same layers of its parent; in both, the same
value of `{RETRAIN_ANNOTATION}`. HMI does not check whether the rows at an address have changed. A version
that the artifact store has lost is trained again.

With `plot.refresh`, a Domain's table follows its traffic: each refresh publishes a version with the same
layers and another table, and no TaskAdapter changes. It starts at a time of `schedule`; or when the miss rate
is above `minMissRate`; or at once when the annotation `{REFRESH_ANNOTATION}` gets a new value. Any of the
three suffices, and none starts one before traffic was counted. `status.refresh.tables` lists the last tables.
The annotation `{TABLE_VERSION_ANNOTATION}`, with the number of one of them, rolls the table back to that one;
while it is there, nothing is refreshed.

`hmi apply` checks a manifest against the schema and the rules of the CRD. It refuses what `kubectl apply`
refuses, fills in the same defaults and reads YAML in the same way:

- Without quotes, `yes`, `no`, `on`, `off`, `y` and `n` are booleans, and `1` is a number: put such labels in
  quotes.
- Fields that are not listed here and duplicate keys are refused. A `null` field is absent.
- A quantity is a whole number (`cpu: 2`) or text (`"500m"`, `"1.5"`, `4Gi`). A request is at most its limit.
- `task.labels` is absent, or has different entries.
- `sharing.namespaces` has names, or `"*"` alone for all namespaces: `team-*` matches nothing.
- `plot.refresh.schedule` has the five fields of cron, or is a word such as `@daily`.
- A base model cannot be fetched from `s3://` or `https://`.
- A file has at most 32 MiB, 10,000 documents, 1,000,000 values once its aliases are expanded, and 64 lists
  and maps inside one another; an object that is sent to `hmi up` has at most 3 MiB and 100,000 values.
"""
_FIELD_HEAD = ("Field", "Type", "Default", "Meaning")
_REASONS_INTRO = (
    "A condition's `reason` is one of these, or one of those of training, loading, or refused manifests and "
    "specs below. Its message says what is wrong and what to do."
)


def reference() -> str:
    """Return the whole page as Markdown."""
    parts = [_HEADER]
    for kind, conditions in zip(KINDS.values(), (DomainCondition, TaskAdapterCondition), strict=True):
        schema = structural_schema(kind.type)
        parts.append(f"## {kind.name}\n\n{kind.type.__doc__}\n")
        for part in ("spec", "status"):
            rows = list(_rows(schema["properties"][part], ""))
            parts.append(f"### {kind.name} {part}\n\n{_table(_FIELD_HEAD, rows)}")
        parts.append(f"### {kind.name} conditions\n\n{_words_table('Type', 'True when', conditions)}")
    parts.append(f"## Phases\n\n`status.phase` is for people.\n\n{_words_table('Phase', 'Meaning', Phase)}")
    parts.append(f"## Reasons\n\n{_REASONS_INTRO}\n\n{_words_table('Reason', 'What to do', Reason)}")
    for title, group in GROUPS.items():
        rows = [(f"`{reason}`", advice) for reason, advice in sorted(group.items())]
        parts.append(f"### {title}\n\n{_table(('Reason', 'What to do'), rows)}")
    return "\n".join(parts)


def _words_table(word: str, explanation: str, values: type[DocumentedEnum]) -> str:
    return _table((word, explanation), [(f"`{one.value}`", one.explanation) for one in values])


def _rows(schema: dict[str, Any], prefix: str) -> Iterator[tuple[str, ...]]:
    required = schema.get("required", [])
    for name, child in schema["properties"].items():
        path = f"{prefix}{name}"
        default = "**required**" if name in required else _default(child)
        yield f"`{path}`", _type_of(child), default, child.get("description", "")
        inner, mark = (child["items"], "[]") if child["type"] == "array" else (child, "")
        if "properties" in inner:
            yield from _rows(inner, f"{path}{mark}.")


def _default(schema: dict[str, Any]) -> str:
    default = schema.get("default")
    return "" if default in (None, {}) else f"`{json.dumps(default)}`"


def _type_of(schema: dict[str, Any]) -> str:
    if "x-kubernetes-int-or-string" in schema:
        return "quantity"
    if schema["type"] == "array":
        return f"list of {_type_of(schema['items'])}"
    if "additionalProperties" in schema:
        return f"map to {_type_of(schema['additionalProperties'])}"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    return f"{schema['type']}{_bounds(schema)}"


def _bounds(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and high is None:
        return ""
    sign = "over " if schema.get("exclusiveMinimum") else ""
    if high is None:
        return f", {sign or 'from '}{low}"
    return f", {sign}{low} to {high}" if low is not None else f", up to {high}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(reference())
