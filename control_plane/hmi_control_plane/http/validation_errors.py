"""What is wrong with a request's fields, in the words of JSON: pydantic's own tell of our types."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError

_MUST_BE = {
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
"""Errors of a wrong type, by pydantic's name, and what the value must be instead."""

_SUBJECT = re.compile(r"^[A-Z]\w*(?: \w+)? should ")
"""How most of pydantic's sentences begin: Input should, String should, Decimal input should."""

Problem = Mapping[str, Any]
"""One of the ``errors()`` of pydantic."""


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """The first thing that is wrong: ``where`` is its path, as input.1; None is the body as a whole."""

    where: str | None
    message: str
    others: int
    """How many other places something is wrong at."""


def first_problem(problems: Sequence[Problem], given: object) -> FieldProblem:
    """Return what to say of ``problems``, whose ``loc`` leads into ``given``; None: it is taken as it is."""
    found = [(_path(problem, given), problem) for problem in problems]
    where = found[0][0]
    for path, _ in found:
        # A value may be of several types, each of which has its complaint: only one of them saw inside it.
        if path[: len(where)] == where:
            where = path
    here = [problem for path, problem in found if path == where]
    others = {path for path, _ in found if path != where[: len(path)]}
    name = ".".join(where)
    return FieldProblem(name or None, _sentence(name or "The body", here), len(others))


def first_request_problem(error: RequestValidationError) -> FieldProblem:
    """Return what to say of what FastAPI refused, which puts body, query or path before a field's name."""
    source = error.errors()[0]["loc"][0]
    problems = [
        {**problem, "loc": problem["loc"][1:]} for problem in error.errors() if problem["loc"][0] == source
    ]
    return first_problem(problems, error.body if source == "body" else None)


def _path(problem: Problem, given: object) -> tuple[str, ...]:
    """Return where a problem is, without what ``loc`` holds besides keys and places.

    Where a value may be of several types, pydantic puts the name of one in between, which leads nowhere.
    """
    loc: tuple[str | int, ...] = problem["loc"]
    if given is None:
        return tuple(map(str, loc))
    path: list[str] = []
    value: Any = given
    for place, part in enumerate(loc, start=1):
        if _leads_on(part, value):
            value = value[part]
        elif problem["type"] != "missing" or place < len(loc):
            continue
        path.append(str(part))
    return tuple(path)


def _leads_on(part: str | int, value: object) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _sentence(subject: str, problems: Sequence[Problem]) -> str:
    """Return what is wrong with one value; ``problems`` holds one for each type that it may be of."""
    # A complaint that is not of the type comes from the type that the value is of.
    of_type = next((problem for problem in problems if problem["type"] not in _MUST_BE), None)
    if of_type is None:
        return f"{subject} must be {' or '.join(dict.fromkeys(_MUST_BE[p['type']] for p in problems))}."
    match of_type["type"]:
        case "missing":
            return f"{subject} is missing."
        case "extra_forbidden":
            return f"{subject} is not a known field."
        case "value_error":
            return f"{subject}: {of_type['ctx']['error']}."
    said = _SUBJECT.sub("must ", of_type["msg"]).replace(" after validation", "")
    return f"{subject} {said}." if said.startswith("must ") else f"{subject}: {said}."
