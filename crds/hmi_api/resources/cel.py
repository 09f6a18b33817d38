"""Rules for the API server, in CEL, written beside the types that they are for.

Each rule is written twice: as a CEL expression, which the API server evaluates, and as a Python function,
which replaces it where there is no API server (``hmi_api.resources.schema_check``). A test compares the two
on a real API server.
"""

from collections.abc import Callable
from typing import Any

from pydantic.config import JsonDict

RULES = "x-kubernetes-validations"
Holds = Callable[[Any], bool]
"""Returns whether a value, with its defaults filled in, keeps a rule."""

_IN_PYTHON: dict[str, Holds] = {}
_IMMUTABLE: dict[str, str] = {}
"""Path of the immutable field by the expression of its rule."""


def rule(expression: str, message: str, field_path: str | None = None, *, holds: Holds) -> JsonDict:
    """Return a rule with the message for users when the expression is false.

    ``holds`` is the same rule in Python.
    """
    _IN_PYTHON[expression] = holds
    made: JsonDict = {"rule": expression, "message": message, "reason": "FieldValueInvalid"}
    return made | {"fieldPath": field_path} if field_path else made


def immutable(path: str, *, optional: bool = False) -> JsonDict:
    """Return the rule that a field, named from the object that carries the rule, keeps its value."""
    expression = f"self.{path} == oldSelf.{path}"
    if optional:
        expression = (
            f"has(self.{path}) == has(oldSelf.{path}) && (!has(self.{path}) || self.{path} == oldSelf.{path})"
        )
    message = f"{path} cannot change; delete the resource and apply it again"
    _IMMUTABLE[expression] = path
    made: JsonDict = {"rule": expression, "message": message, "reason": "FieldValueForbidden"}
    return made if optional else made | {"fieldPath": f".{path}"}


def rules(*made: JsonDict) -> JsonDict:
    """Return the schema extra that carries the rules."""
    return {RULES: list(made)}


def broken(schema: dict[str, Any], value: Any) -> list[dict[str, Any]]:
    """Return the rules of a schema that a value, with its defaults filled in, does not keep.

    Rules about changes are not among them: see ``hmi_api.resources.spec_changes``.
    """
    return [
        one
        for one in schema.get(RULES, [])
        if one["rule"] not in _IMMUTABLE and not _IN_PYTHON[one["rule"]](value)
    ]
