"""Messages for invalid request fields in terms of JSON; pydantic's messages name Python types."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError

from hmi_api.resources.common import DNS_LABEL, DNS_LABEL_WORDS

_EXPECTED = {
    "string_type": "a string",
    "list_type": "a list",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
"""By pydantic's name of a type error, the type that is expected."""

_SUBJECT = re.compile(r"^[A-Z]\w*(?: \w+)? should ")
"""How most of pydantic's messages begin: Input should, String should, Decimal input should."""

PydanticError = Mapping[str, Any]
"""One item of ``ValidationError.errors()``."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """The first invalid field: its path, such as input.1; None for the body as a whole."""

    field: str | None
    message: str
    others: int
    """The number of other invalid fields."""


def first_error(errors: Sequence[PydanticError], value: object) -> FieldError:
    """Return the first of ``errors``, whose ``loc`` leads into ``value``; None leaves ``loc`` unchanged."""
    found = [(_field_path(error, value), error) for error in errors]
    first = found[0][0]
    for path, _ in found:
        # A union reports an error for each of its types; the deepest path is of the type that the value has.
        if path[: len(first)] == first:
            first = path
    here = [error for path, error in found if path == first]
    others = {path for path, _ in found if path != first[: len(path)]}
    name = ".".join(first)
    return FieldError(name or None, _message(name or "The body", here), len(others))


def first_request_error(error: RequestValidationError) -> FieldError:
    """Return the first error that FastAPI found, without ``body``, ``query`` or ``path`` before the field."""
    errors = error.errors()
    source = errors[0]["loc"][0]
    same_source = [{**one, "loc": one["loc"][1:]} for one in errors if one["loc"][0] == source]
    return first_error(same_source, error.body if source == "body" else None)


def _field_path(error: PydanticError, value: Any) -> tuple[str, ...]:
    """Return ``loc`` without the names of union members, which pydantic puts between keys and indices."""
    loc: tuple[str | int, ...] = error["loc"]
    if value is None:
        return tuple(map(str, loc))
    path: list[str] = []
    for depth, part in enumerate(loc, start=1):
        if _contains(value, part):
            value = value[part]
        elif error["type"] != "missing" or depth < len(loc):
            continue
        path.append(str(part))
    return tuple(path)


def _contains(value: object, part: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _message(field: str, errors: Sequence[PydanticError]) -> str:
    """Return the message for one field; a union has an error for each of its types."""
    # An error that is not about the type comes from the type that the value has.
    specific = next((error for error in errors if error["type"] not in _EXPECTED), None)
    if specific is None:
        return f"{field} must be {' or '.join(dict.fromkeys(_EXPECTED[e['type']] for e in errors))}."
    match specific["type"]:
        case "missing":
            return f"{field} is missing."
        case "extra_forbidden":
            return f"{field} is not a known field."
        case "value_error":
            return f"{field}: {specific['ctx']['error']}."
        case "string_pattern_mismatch" if specific["ctx"]["pattern"].startswith(DNS_LABEL):
            return f"{field}: {DNS_LABEL_WORDS}."
    text = _SUBJECT.sub("must ", specific["msg"]).replace(" after validation", "")
    return f"{field} {text}." if text.startswith("must ") else f"{field}: {text}."
