"""Rules for the API server, in CEL, written beside the types that they hold for."""

from pydantic.config import JsonDict

RULES = "x-kubernetes-validations"


def rule(expression: str, message: str, field_path: str | None = None) -> JsonDict:
    """Return a rule: the message is what a user reads when the expression is false."""
    made: JsonDict = {"rule": expression, "message": message, "reason": "FieldValueInvalid"}
    return made | {"fieldPath": field_path} if field_path else made


def immutable(path: str, *, optional: bool = False) -> JsonDict:
    """Return the rule that a field, named from the object that carries the rule, keeps its value."""
    expression = f"self.{path} == oldSelf.{path}"
    if optional:
        expression = (
            f"has(self.{path}) == has(oldSelf.{path}) && (!has(self.{path}) || self.{path} == oldSelf.{path})"
        )
    message = f"{path} cannot change; delete the resource and apply it anew"
    made: JsonDict = {"rule": expression, "message": message, "reason": "FieldValueForbidden"}
    return made if optional else made | {"fieldPath": f".{path}"}


def rules(*made: JsonDict) -> JsonDict:
    """Return the schema extra that carries the rules."""
    return {RULES: list(made)}
