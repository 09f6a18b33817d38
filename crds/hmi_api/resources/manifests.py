"""Manifests: what a user wrote, read into resource types, with errors that say what to correct.

Pure. Accepts and refuses what the API server does, metadata that HMI does not read included
(``hmi_api.resources.schema_check``).
"""

import difflib
from typing import Any

from pydantic import ValidationError

from hmi_api.errors import InvalidInput
from hmi_api.names import API_VERSION
from hmi_api.resources.common import Namespace
from hmi_api.resources.kinds import KINDS, Resource
from hmi_api.resources.schema_check import checked

Manifest = Resource | Namespace

_TYPES: dict[tuple[str, str], type[Manifest]] = {
    **{(API_VERSION, kind.name): kind.type for kind in KINDS.values()},
    ("v1", "Namespace"): Namespace,
}


def parse_manifest(document: Any, *, where: str = "the manifest") -> Manifest:
    """Read one object from plain values, without its status; ``where`` names it in errors.

    Raises ``InvalidInput``: MalformedManifest, UnknownKind or InvalidManifest.
    """
    if not isinstance(document, dict):
        known: dict[type, str] = {list: "a list", str: "a string", type(None): "empty"}
        found = known.get(type(document), f"a {type(document).__name__}")
        raise InvalidInput(
            "MalformedManifest", f"{where}: this is {found}; write apiVersion, kind, metadata and spec."
        )
    api_version, kind = document.get("apiVersion"), document.get("kind")
    type_ = _TYPES.get((str(api_version), str(kind)))
    if type_ is None:
        raise InvalidInput("UnknownKind", f"{where}: {_unknown_kind(api_version, kind)}")
    try:
        return type_.model_validate(checked(str(kind), document), by_alias=True, by_name=False)
    except InvalidInput as error:
        raise InvalidInput(error.reason, f"{_title(where, kind, document)}: {error.message}") from error
    except ValidationError as error:  # no case is known in which the type is stricter than the schema
        raise InvalidInput(
            "InvalidManifest", f"{_title(where, kind, document)}: {explained(error)}"
        ) from error


def explained(error: ValidationError) -> str:
    """Return what is wrong with an object that a type could not read, field by field."""
    sentences = []
    for problem in error.errors():
        place = ".".join(map(str, problem["loc"])) or "the object"
        unknown = problem["type"] == "extra_forbidden"
        sentences.append(f"{place} is not a field." if unknown else f"{place}: {problem['msg']}.")
    return " ".join(sentences)


def _title(where: str, kind: Any, document: dict[str, Any]) -> str:
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return f"{where} ({kind} {name[:63]})" if isinstance(name, str) else f"{where} ({kind})"


def _unknown_kind(api_version: Any, kind: Any) -> str:
    if not kind or not api_version:
        missing = "kind" if not kind else "apiVersion"
        return f"{missing} is missing; HMI takes Domain and TaskAdapter of {API_VERSION}."
    for version, known in _TYPES:
        if known == kind:
            return f"{kind} of {str(api_version)[:60]} is not known; set apiVersion to {version}."
    close = difflib.get_close_matches(str(kind)[:60], [known for _, known in _TYPES], n=1)
    guess = f"; did you mean {close[0]}?" if close else ""
    return f"kind {str(kind)[:60]} is not known{guess}; HMI takes Domain and TaskAdapter of {API_VERSION}."
