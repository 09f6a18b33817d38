"""CustomResourceDefinitions, generated from the types: ``python -m hmi_api.resources.crd [--check] FOLDER``.

A type's JSON schema becomes a structural one, as the API server requires it: references are inlined, a
``null`` field becomes an optional one, and an object whose fields all have defaults gets a default.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from hmi_api.names import GROUP, VERSION
from hmi_api.resources.cel import rule, rules
from hmi_api.resources.common import DNS_LABEL
from hmi_api.resources.kinds import DOMAIN, TASK_ADAPTER, Kind

_HEADER = "# Generated from the types by `python -m hmi_api.resources.crd crds`; edit those.\n"
_INT_OR_STRING = "x-kubernetes-int-or-string"
_REWRITTEN = {"$defs", "$ref", "anyOf", "const", "exclusiveMinimum", "title"}
"""Keywords of JSON Schema that a structural schema lacks, or writes in another way."""
_NESTED = {"items", "additionalProperties", "properties"}
_READY = '.status.conditions[?(@.type=="Ready")]'
_NOT_OBSERVED = -1
_SCALE = {"specReplicasPath": ".spec.serving.replicas", "statusReplicasPath": ".status.replicas"}
"""For ``kubectl scale``. There is no selector, as no pods belong to one TaskAdapter."""
_NAME_MESSAGE = (
    "a name has at most 63 lower-case letters, digits and dashes, with a letter or digit first and last"
)

Schema = dict[str, Any]


def crd_file_name(plural: str) -> str:
    """Return the name of the file with a kind's definition."""
    return f"{plural}.{GROUP}.yaml"


def crds() -> dict[str, Schema]:
    """Return the definitions by file name."""
    parent = [
        _column("Parent", ".spec.parentRef.name"),
        _column("Hit Rate", ".status.hitRate", type_="number"),
    ]
    domain = [_column("Domain", ".spec.domainRef.name")]
    return {
        crd_file_name(DOMAIN.plural): _definition(
            DOMAIN, parent, "A node of the knowledge tree.", {"status": {}}
        ),
        crd_file_name(TASK_ADAPTER.plural): _definition(
            TASK_ADAPTER, domain, "One tenant's one task.", {"status": {}, "scale": _SCALE}
        ),
    }


def render(definition: Schema) -> str:
    """Return a definition as YAML."""
    # Through JSON, so that parts that are shared in memory are written out instead of being anchors.
    plain = json.loads(json.dumps(definition))
    return _HEADER + yaml.safe_dump(plain, sort_keys=False, width=110, allow_unicode=True)


def structural_schema(type_: type[BaseModel]) -> Schema:
    """Return the structural OpenAPI schema of a resource type."""
    schema: Schema = type_.model_json_schema(by_alias=True)
    made = _structural(schema, schema.get("$defs", {}))
    # The API server knows metadata itself and allows nothing but its type here.
    made["properties"]["metadata"] = {"type": "object"}
    for field in ("apiVersion", "kind"):
        made["properties"][field] = {"type": "string"}
    made["required"] = ["spec"]
    made |= rules(
        rule(
            f"self.metadata.name.matches('{DNS_LABEL}')",
            _NAME_MESSAGE,
            holds=lambda resource: bool(re.fullmatch(DNS_LABEL, resource["metadata"]["name"])),
        )
    )
    # Without observedGeneration, kstatus would take an object that was never reconciled for finished.
    made["properties"]["status"]["default"] = {"observedGeneration": _NOT_OBSERVED}
    return made


def _definition(kind: Kind, own_columns: list[Schema], description: str, subresources: Schema) -> Schema:
    names = {
        "kind": kind.name,
        "listKind": f"{kind.name}List",
        "plural": kind.plural,
        "singular": kind.singular,
        "shortNames": [kind.short],
        "categories": ["hmi"],
    }
    schema = structural_schema(kind.type) | {"description": description}
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": subresources,
        "additionalPrinterColumns": [
            _column("Phase", ".status.phase"),
            _column("Ready", f"{_READY}.status"),
            *own_columns,
            _column("Version", ".status.version", type_="integer"),
            _column("Progress", ".status.progress"),
            _column("Reason", f"{_READY}.reason") | {"priority": 1},
            _column("Message", f"{_READY}.message") | {"priority": 1},
            _column("Age", ".metadata.creationTimestamp", type_="date"),
        ],
        "schema": {"openAPIV3Schema": schema},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind.plural}.{GROUP}",
            "labels": {"app.kubernetes.io/name": "hmi", "app.kubernetes.io/part-of": "hmi"},
        },
        "spec": {"group": GROUP, "names": names, "scope": "Namespaced", "versions": [version]},
    }


def _column(name: str, path: str, *, type_: str = "string") -> Schema:
    return {"name": name, "type": type_, "jsonPath": path}


def _structural(node: Schema, definitions: Schema) -> Schema:
    """Return a node with its references inlined and only the keywords of a structural schema."""
    node = _resolved(node, definitions)
    made: Schema = {key: value for key, value in node.items() if key not in _REWRITTEN | _NESTED}
    if _INT_OR_STRING in node:
        made["anyOf"] = node["anyOf"]
    if "const" in node:
        made["enum"] = [node["const"]]
    if "exclusiveMinimum" in node:  # a number in JSON Schema, a flag beside minimum in OpenAPI 3.0
        made |= {"minimum": node["exclusiveMinimum"], "exclusiveMinimum": True}
    if made.get("type") == "integer":
        made["format"] = "int64"
    if made.get("default", "absent") is None:
        del made["default"]
    if "items" in node:
        made["items"] = _structural(node["items"], definitions)
    if isinstance(node.get("additionalProperties"), dict):
        made["additionalProperties"] = _structural(node["additionalProperties"], definitions)
    if "properties" in node:
        made["properties"] = _properties(node, definitions)
    return made


def _properties(node: Schema, definitions: Schema) -> Schema:
    required = node.get("required", [])
    made = {}
    for name, child in node["properties"].items():
        schema = _structural(child, definitions)
        made[name] = schema
        # An object that may be left out and needs nothing gets its own fields' defaults.
        nullable = "anyOf" in child and _INT_OR_STRING not in child
        if "properties" in schema and name not in required and not nullable and "required" not in schema:
            schema["default"] = {}
    return made


def _resolved(node: Schema, definitions: Schema) -> Schema:
    """Follow a reference or the one choice that is not null; keywords beside it take precedence."""
    if _INT_OR_STRING in node:
        return node
    for choice in node.get("anyOf", []):
        if choice.get("type") != "null":
            rest = {key: value for key, value in node.items() if key != "anyOf"}
            return _resolved(choice | rest, definitions)
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[-1]]
        rest = {key: value for key, value in node.items() if key != "$ref"}
        return _resolved(target | rest, definitions)
    return node


def main(arguments: list[str]) -> int:
    """Write the definitions into a folder, or with ``--check`` say which differ; return the exit code."""
    check = "--check" in arguments
    folders = [argument for argument in arguments if argument != "--check"]
    if len(folders) != 1:
        sys.stderr.write("usage: python -m hmi_api.resources.crd [--check] FOLDER\n")
        return 2
    stale = []
    for name, definition in crds().items():
        file, text = Path(folders[0]) / name, render(definition)
        if not check:
            file.write_text(text)
        elif not file.exists() or file.read_text() != text:
            stale.append(name)
    if stale:
        sys.stderr.write(
            f"{', '.join(stale)} differ from the types; run `python -m hmi_api.resources.crd {folders[0]}`\n"
        )
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
