"""The reference page of both kinds, generated from the types: ``python -m hmi_api.resources.reference``."""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from hmi_api.names import API_VERSION, RETRAIN_ANNOTATION, TENANT_LABEL
from hmi_api.resources.conditions import DomainCondition, Phase, TaskAdapterCondition
from hmi_api.resources.crd import structural_schema
from hmi_api.resources.domain import Domain
from hmi_api.resources.reasons import GROUPS, Reason
from hmi_api.resources.task_adapter import TaskAdapter

_HEADER = f"""# Resources

*Generated from the types by `python -m hmi_api.resources.reference > docs/resources.md`.*

Two kinds of `{API_VERSION}`, both namespaced: [`Domain`](#domain) (short name `dom`) and
[`TaskAdapter`](#taskadapter) (`ta`). The same YAML goes to `hmi apply` and to `kubectl apply`.

A namespace's tenant, who is metered and billed, is its label `{TENANT_LABEL}`, else its own name.
A changed spec makes a new version while the old one serves. Rows that were mended in place are no
change of the spec: give the annotation `{RETRAIN_ANNOTATION}` a new value to train again.

A spec that goes back to what it was before is not trained again: the version that was made from it, and
passed its gate, is published again under the next number, with the metrics of then. For a TaskAdapter that
is the same `spec` (but for `serving`, `resources` and `suspend`) on the same layers of its Domain; for a
Domain the same `spec` (but for `sharing`, `resources`, `suspend` and `plot.refresh`) on the same layers of
its parent; in both, the same value of `{RETRAIN_ANNOTATION}`. HMI does not know whether rows at an address
have changed since. What the artifact store has lost is trained again.

`hmi apply` holds a manifest against the schema and the rules of the CRD, so it refuses what `kubectl apply`
refuses, fills in the same defaults and reads YAML alike:

- Without quotes, `yes`, `no`, `on`, `off`, `y` and `n` are booleans, and `1` is a number: put such labels in
  quotes.
- A field that is not listed here is refused, and a key that is written twice. A `null` field is absent.
- A quantity is a whole number (`cpu: 2`) or text (`"500m"`, `"1.5"`, `4Gi`). A request is at most its limit.
- `task.labels` is absent, or has entries of which none is twice.
- `sharing.namespaces` has names, or `"*"` alone for all namespaces: `team-*` would match nothing.
- `plot.refresh.schedule` has the five fields of cron, or is a word such as `@daily`.
- A base model is not fetched from `s3://` or `https://`.
- A file has at most 32 MiB, 10,000 documents, 1,000,000 values once its aliases are expanded, and 64 lists
  and maps inside one another; an object that is sent to `hmi up` has at most 3 MiB and 100,000 values.
"""
_MEANINGS: dict[str, str] = {
    "Domain/Accepted": "The Domain can work as declared.",
    "Domain/CorpusReady": "The corpus was read and holds text.",
    "Domain/Trained": "The lower layers and the bridge are distilled.",
    "Domain/TableBuilt": "The lookup table is built and measured.",
    "Domain/Published": "The declared spec has a version in the catalog.",
    "Domain/Ready": "A version, this one or the one before, can be stood on.",
    "Domain/Reconciling": "The declared spec is not in effect yet, and work on it goes on by itself.",
    "Domain/Stalled": "The declared spec is not in effect, and will not be until something is changed.",
    "TaskAdapter/Accepted": "The TaskAdapter can work as declared.",
    "TaskAdapter/DomainReady": "Its Domain has a published version.",
    "TaskAdapter/QuotaAvailable": "The tenant's quota allows it.",
    "TaskAdapter/Trained": "The adapter is trained, or imported.",
    "TaskAdapter/GatePassed": "The metric on held-out rows reached the gate's minimum.",
    "TaskAdapter/Published": "The declared spec has a version in the catalog.",
    "TaskAdapter/Scheduled": "A runtime was chosen to hold the declared spec's version.",
    "TaskAdapter/Loaded": "A runtime holds the declared spec's version, and answers with it.",
    "TaskAdapter/Ready": "A version, this one or the one before, answers requests.",
    "TaskAdapter/Reconciling": "The declared spec is not in effect yet, and work on it goes on by itself.",
    "TaskAdapter/Stalled": "The declared spec is not in effect, and will not be until something is changed.",
}


_ADVICE_HEAD = ("Reason", "What to do")


def reference() -> str:
    """Return the whole page as Markdown."""
    parts = [_HEADER]
    for kind, type_, conditions in (
        ("Domain", Domain, list(DomainCondition)),
        ("TaskAdapter", TaskAdapter, list(TaskAdapterCondition)),
    ):
        schema = structural_schema(type_)
        parts.append(f"## {kind}\n\n{type_.__doc__}\n")
        for part in ("spec", "status"):
            parts.append(f"### {kind} {part}\n\n{_fields_table(schema['properties'][part])}")
        rows = [(f"`{condition}`", _MEANINGS[f"{kind}/{condition}"]) for condition in conditions]
        parts.append(f"### {kind} conditions\n\n{_table(('Type', 'True when'), rows)}")
    parts.append(_phases())
    parts.append(_reasons())
    return "\n".join(parts)


def _phases() -> str:
    rows = [(f"`{phase.value}`", phase.meaning) for phase in Phase]
    return f"## Phases\n\n`status.phase` sums up for people.\n\n{_table(('Phase', 'Meaning'), rows)}"


def _reasons() -> str:
    rows = [(f"`{reason.value}`", reason.advice) for reason in Reason]
    intro = (
        "A condition's `reason` is one of these, or one of training, loading or declaring below, with a "
        "message that says what is wrong and what to do."
    )
    parts = [f"## Reasons\n\n{intro}\n\n{_table(_ADVICE_HEAD, rows)}"]
    for title, group in GROUPS.items():
        rows = [(f"`{reason}`", advice) for reason, advice in sorted(group.items())]
        parts.append(f"### {title}\n\n{_table(_ADVICE_HEAD, rows)}")
    return "\n".join(parts)


def _fields_table(schema: dict[str, Any]) -> str:
    rows = list(_rows(schema, ""))
    return _table(("Field", "Type", "Default", "Meaning"), rows)


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
