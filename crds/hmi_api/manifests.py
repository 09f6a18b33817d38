"""Manifests: what a user wrote, read into resource types, with errors that say what to mend.

Pure: text or plain values in, resources out. Whatever kubectl takes is taken, metadata that HMI does not
read included.
"""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hmi_api.domain import Domain
from hmi_api.errors import InvalidInput
from hmi_api.names import API_VERSION
from hmi_api.namespace import Namespace
from hmi_api.task_adapter import TaskAdapter

Resource = Domain | TaskAdapter
Manifest = Domain | TaskAdapter | Namespace

_TYPES: dict[tuple[str, str], type[Domain] | type[TaskAdapter] | type[Namespace]] = {
    (API_VERSION, "Domain"): Domain,
    (API_VERSION, "TaskAdapter"): TaskAdapter,
    ("v1", "Namespace"): Namespace,
}
_SHOWN_ERRORS = 5


def parse_manifests(text: str) -> list[Manifest]:
    """Read every document of a YAML text; empty documents are skipped, a ``List`` is its items.

    Raises ``InvalidInput`` that names the document's number (from 1), the field and what to do.
    """
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise InvalidInput("MalformedYaml", f"This is not YAML: {_yaml_problem(error)}.") from error
    return [
        parse_manifest(item, where=f"document {number}")
        for number, document in enumerate(documents, start=1)
        for item in _items(document)
    ]


def parse_manifest(document: Any, *, where: str = "the manifest") -> Manifest:
    """Read one object from plain values; ``where`` names it in errors. Raises ``InvalidInput``."""
    if not isinstance(document, dict):
        raise InvalidInput(
            "MalformedManifest",
            f"{where}: this is {_name_of(document)}; write apiVersion, kind, metadata and spec.",
        )
    api_version, kind = document.get("apiVersion"), document.get("kind")
    type_ = _TYPES.get((str(api_version), str(kind)))
    if type_ is None:
        raise InvalidInput("UnknownKind", f"{where}: {_unknown_kind(api_version, kind)}")
    try:
        return type_.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidInput(
            "InvalidManifest", f"{_title(where, kind, document)}: {explain(error, type_)}"
        ) from error


def explain(error: ValidationError, type_: type[BaseModel]) -> str:
    """Return what is wrong with a document of that type, field by field, as one sentence each."""
    problems = error.errors()
    told = [_problem(problem, type_) for problem in problems[:_SHOWN_ERRORS]]
    if len(problems) > _SHOWN_ERRORS:
        told.append(f"and {len(problems) - _SHOWN_ERRORS} more.")
    return " ".join(told)


def _items(document: Any) -> Iterator[Any]:
    if document is None:
        return
    if isinstance(document, dict) and document.get("kind") == "List":
        for item in document.get("items") or []:
            yield from _items(item)
        return
    yield document


def _title(where: str, kind: Any, document: dict[str, Any]) -> str:
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return f"{where} ({kind} {name})" if name else f"{where} ({kind})"


def _unknown_kind(api_version: Any, kind: Any) -> str:
    if not kind or not api_version:
        missing = "kind" if not kind else "apiVersion"
        return f"{missing} is missing; HMI takes Domain and TaskAdapter of {API_VERSION}."
    for version, known in _TYPES:
        if known == kind:
            return f"{kind} of {api_version} is not known; set apiVersion to {version}."
    guess = _did_you_mean(str(kind), [known for _, known in _TYPES])
    return f"kind {kind} is not known{guess}; HMI takes Domain and TaskAdapter of {API_VERSION}."


def _problem(problem: ErrorDetails, type_: type[BaseModel]) -> str:
    path = _path(problem["loc"])
    if problem["type"] == "extra_forbidden":
        siblings = _fields_at(type_, problem["loc"][:-1])
        guess = _did_you_mean(str(problem["loc"][-1]), siblings)
        return f"{path} is not a field{guess or '; remove it'}."
    if problem["type"] == "missing":
        return f"{path} is missing; add it."
    if problem["type"] == "string_pattern_mismatch" and problem["loc"][-1:] in (("name",), ("namespace",)):
        return (
            f"{path} {_shown(problem['input'])} is not a name; use at most 63 lower-case letters, digits and "
            "dashes, a letter or digit first and last."
        )
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if problem["type"] == "value_error":
        return f"{path}: {message}."
    return f"{path} is {_shown(problem['input'])}; {message}."


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.lstrip(".") or "the object"


def _fields_at(type_: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Return the YAML names of the fields of the object at a location of a document of that type."""
    schema: dict[str, Any] = type_.model_json_schema(by_alias=True)
    definitions = schema.get("$defs", {})
    node = schema
    for part in location:
        step = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
        node = _resolved(step, definitions)
    return list(node.get("properties", {}))


def _resolved(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    options = [option for option in node.get("anyOf", []) if option.get("type") != "null"]
    if options:
        node = options[0]
    reference = node.get("$ref")
    return definitions[reference.rsplit("/", 1)[-1]] if reference else node


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower().replace("_", ""), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _name_of(value: Any) -> str:
    known: dict[type, str] = {list: "a list", str: "a string"}
    return known.get(type(value), f"a {type(value).__name__}")


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else str(problem)
