"""Checks an object against the generated CRD, as an API server does: defaults, types, bounds and rules.

The API server reads the same schema from the CRD, so ``hmi apply`` and ``kubectl apply`` accept and refuse
the same objects. A test compares the two on a real API server.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, extend

from hmi_api.errors import InvalidInput
from hmi_api.resources.cel import broken
from hmi_api.resources.common import DNS_LABEL, DNS_LABEL_WORDS
from hmi_api.resources.crd import structural_schema
from hmi_api.resources.kinds import KINDS

Schema = dict[str, Any]
Object = dict[str, Any]
_SHOWN_FAULTS = 5
_LONGEST_WORD = 60
_ANY: Schema = {}
_LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
_LABEL_KEY = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
_NAME: Schema = {"type": "string", "pattern": DNS_LABEL, "maxLength": 63}
METADATA: Schema = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": _NAME,
        "namespace": _NAME,
        "labels": {
            "type": "object",
            "propertyNames": {"pattern": _LABEL_KEY},
            "additionalProperties": {"type": "string", "pattern": _LABEL_VALUE},
        },
        "annotations": {
            "type": "object",
            "propertyNames": {"pattern": _LABEL_KEY},
            "additionalProperties": {"type": "string"},
        },
        "finalizers": {"type": "array", "items": {"type": "string"}},
        "generateName": {"type": "string"},
        "uid": {"type": "string"},
        "resourceVersion": {"type": "string"},
        "generation": {"type": "integer"},
        "creationTimestamp": _ANY,
        "deletionTimestamp": _ANY,
        "deletionGracePeriodSeconds": _ANY,
        "managedFields": _ANY,
        "ownerReferences": _ANY,
        "selfLink": _ANY,
    },
}
"""What an API server accepts as metadata of any object."""


def checked(kind: str, document: Object) -> Object:
    """Return an object of a kind, without its status and with its defaults filled in.

    Raises ``InvalidInput`` InvalidManifest, which names every fault by its field.
    """
    schema = _schema_of(kind)
    body: Object = _with_defaults(
        {name: value for name, value in document.items() if name != "status"}, schema
    )
    faults: list[ValidationError] = sorted(
        _validator_of(kind).iter_errors(body), key=lambda fault: [str(part) for part in fault.path]
    )
    if faults:
        raise InvalidInput("InvalidManifest", _summary(faults))
    broken_rules = [
        f"{path or 'the object'}: {message}." for path, message in _broken_rules(schema, body, ())
    ]
    if broken_rules:
        raise InvalidInput("InvalidManifest", " ".join(broken_rules[:_SHOWN_FAULTS]))
    return body


# --- as the API server does before it validates ---------------------------------------------------


def _with_defaults(value: Any, schema: Schema) -> Any:
    """Return a value with defaults where a field is absent or null; without other fields that are null."""
    if isinstance(value, list) and "items" in schema:
        return [_with_defaults(item, schema["items"]) for item in value]
    if not isinstance(value, dict):
        return value
    fields, others = schema.get("properties", {}), schema.get("additionalProperties", _ANY)
    made: Object = {}
    for name, child in value.items():
        if name not in fields:
            if child is not None or "additionalProperties" not in schema:
                made[name] = _with_defaults(child, others)
        elif child is not None or fields[name] == _ANY:
            made[name] = _with_defaults(child, fields[name])
    for name, field in fields.items():
        if name not in made and "default" in field:
            made[name] = _with_defaults(field["default"], field)
    return made


# --- structure ------------------------------------------------------------------------------------


def _pattern(validator: Any, pattern: str, instance: Any, schema: Schema) -> Iterator[ValidationError]:
    # As in Go, `$` is the end of the text, not of a line.
    if isinstance(instance, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


_Checker = extend(Draft202012Validator, {"pattern": _pattern})  # type: ignore[no-untyped-call] # as its stubs are


@cache
def _validator_of(kind: str) -> Validator:
    made: Validator = _Checker(_closed(_schema_of(kind)))
    return made


@cache
def _schema_of(kind: str) -> Schema:
    if kind == "Namespace":
        fields = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "spec": _ANY}
        return {"type": "object", "properties": {**fields, "metadata": METADATA}, "required": ["metadata"]}
    schema = structural_schema(KINDS[kind].type)
    fields = {name: field for name, field in schema["properties"].items() if name != "status"}
    return schema | {"properties": fields | {"metadata": METADATA}, "required": ["metadata", "spec"]}


def _closed(schema: Schema) -> Schema:
    """Return a structural schema as JSON Schema: fields that it does not name are refused."""
    made = dict(schema)
    if made.pop("exclusiveMinimum", False) is True:  # a flag in OpenAPI 3.0, a number in JSON Schema
        made["exclusiveMinimum"] = made.pop("minimum")
    if "properties" in made:
        made["properties"] = {name: _closed(field) for name, field in made["properties"].items()}
        made["additionalProperties"] = False
    elif "additionalProperties" in made:
        made["additionalProperties"] = _closed(made["additionalProperties"])
    if "items" in made:
        made["items"] = _closed(made["items"])
    return made


def _broken_rules(schema: Schema, value: Any, path: Sequence[str | int]) -> Iterator[tuple[str, str]]:
    """Yield path and message of every rule that a structurally valid value breaks."""
    for one in broken(schema, value):
        yield _path(path) + one.get("fieldPath", ""), one["message"]
    if isinstance(value, dict):
        for name, child in value.items():
            inner = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            if isinstance(inner, dict):
                yield from _broken_rules(inner, child, (*path, name))
    elif isinstance(value, list) and "items" in schema:
        for number, child in enumerate(value):
            yield from _broken_rules(schema["items"], child, (*path, number))


# --- words ----------------------------------------------------------------------------------------

_TYPE_WORDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "a map of fields",
    "array": "a list",
    "quantity": "a whole number, or text in quotes",
}
_PATTERN_WORDS = {
    DNS_LABEL: DNS_LABEL_WORDS,
    _LABEL_VALUE: "a label has at most 63 letters, digits, dots, dashes and underscores, "
    "with a letter or digit first and last",
}
_BOUND_WORDS = {
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "exclusiveMinimum": "must be above {}",
    "minLength": "must have at least {} characters",
    "maxLength": "must have at most {} characters",
    "minItems": "must have at least {} entries",
    "maxItems": "must have at most {} entries",
    "maxProperties": "must have at most {} entries",
}


def _summary(faults: list[ValidationError]) -> str:
    """Return what is wrong, where, and what to do: one sentence a field, then how many more there are."""
    found = [(fault, name) for fault in faults for name in _fields_of(fault)]
    sentences = [_sentence(fault, name) for fault, name in found[:_SHOWN_FAULTS]]
    if len(found) > _SHOWN_FAULTS:
        sentences.append(f"and {len(found) - _SHOWN_FAULTS} more.")
    return " ".join(sentences)


def _fields_of(fault: Any) -> list[str | None]:
    """Return the fields of an object that a fault is about; None for the place itself."""
    if fault.validator == "additionalProperties":
        return [name for name in fault.instance if name not in fault.schema["properties"]]
    if fault.validator == "required":  # there is one such fault for each field that is missing
        return re.findall("^'(.*)' is a required property$", fault.message)
    return [None]


def _sentence(fault: Any, name: str | None) -> str:
    path = list(fault.absolute_path)
    if name is None:
        return f"{_path(path) or 'the object'} {_about(fault, fault.instance, fault.validator_value)}."
    if fault.validator == "required":
        return f"{_path([*path, name])} is missing; add it."
    place, known = _path([*path, name[:_LONGEST_WORD]]), list(fault.schema["properties"])
    return f"{place} is not a field{_did_you_mean(name, known)}"


def _about(fault: Any, given: Any, wanted: Any) -> str:
    keyword, shown = str(fault.validator), _shown(given)
    if "propertyNames" in fault.absolute_schema_path:
        return f"has the key {shown}, which is not a valid key in Kubernetes; correct it"
    if keyword in ("type", "anyOf"):
        word = _TYPE_WORDS["quantity" if keyword == "anyOf" else wanted]
        return f"is {shown}, which is {_kind_of(given)}; write {word}{_cure(given, word)}"
    if keyword == "enum":
        return f"is {shown}; write {' or '.join(_shown(value) for value in wanted)}"
    if keyword == "pattern":
        return f"is {shown}; {_PATTERN_WORDS.get(wanted, f'it must match {wanted}')}"
    return f"is {shown}; it {_BOUND_WORDS.get(keyword, keyword + ' {}').format(wanted)}"


def _kind_of(value: Any) -> str:
    """Return what a value is, in the words of YAML."""
    if isinstance(value, bool):
        return "a boolean (YAML reads yes, no, on, off, y and n as booleans, too)"
    if isinstance(value, int | float):
        return "a number"
    if value is None:
        return "nothing"
    return "text" if isinstance(value, str) else "a list" if isinstance(value, list) else "a map of fields"


def _cure(value: Any, wanted: str) -> str:
    """Return the hint to add or to remove quotes."""
    if isinstance(value, bool) and wanted == "text":
        meant = '"yes"' if value else '"no"'
        return f": put the word in quotes, as in {meant}"
    if isinstance(value, int | float) and not isinstance(value, bool) and "text" in wanted:
        return f': put it in quotes, as in "{value}"'
    if isinstance(value, str) and wanted in ("a whole number", "a number", "true or false"):
        return " without quotes"
    return ""


def _path(location: Iterable[str | int]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.lstrip(".")


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word[:_LONGEST_WORD].lower().replace("_", ""), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]}?" if close else "; remove it."


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_WORD else text[: _LONGEST_WORD - 3] + "..."
