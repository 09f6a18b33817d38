"""Regular expressions that tenants write, matched in time linear in the length of what they are matched with.

PEFT lets ``alpha_pattern`` name modules by Python regular expressions, which can backtrack for hours. Here
they are matched by the Rust engine behind pydantic, which is an automaton: it has no look-around and no
backreferences, and refuses patterns that would compile to more than 10 MB.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import StringConstraints, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from hmi_api.errors import InvalidInput

MOST_PATTERNS = 1000
MOST_EXPRESSIONS = 20
"""Of the patterns, those that are more than a name: each may take a fifth of a second to compile."""
LONGEST_PATTERN = 256
_NAME = re.compile(r"[A-Za-z0-9_.]*")


def by_first_pattern(values: Mapping[str, float], modules: Iterable[str], field: str) -> dict[str, float]:
    """Return the value of each module that a pattern matches, by the first one that does.

    A pattern matches a module path as PEFT has it: the whole path, or all of it after some dot. ``field`` is
    where ``values`` stand in adapter_config.json. Raises ``InvalidInput`` AdapterPattern for what is no
    pattern, is too long, or one of too many.
    """
    if len(values) > MOST_PATTERNS:
        raise _refused(field, f"it has {len(values)} patterns, {MOST_PATTERNS} are read")
    expressions = sum(_NAME.fullmatch(pattern) is None for pattern in values)
    if expressions > MOST_EXPRESSIONS:
        raise _refused(field, f"it has {expressions} expressions, {MOST_EXPRESSIONS} are read beside names")
    left, found = list(modules), dict[str, float]()
    for pattern, value in values.items():
        matcher = _matcher(field, pattern)
        matched = [module for module in left if _matches(matcher, module)]
        found |= dict.fromkeys(matched, value)
        left = [module for module in left if module not in found]
    return found


def _matcher(field: str, pattern: str) -> TypeAdapter[Any]:
    if len(pattern) > LONGEST_PATTERN:
        raise _refused(
            field, f"a pattern has {len(pattern)} characters, {LONGEST_PATTERN} are read: {pattern[:40]!r}..."
        )
    try:
        _compiled(pattern)  # by itself, so that it cannot close the group that is put around it
        return _compiled(rf"^(?:.*\.)?(?:{pattern})$")
    except SchemaError as error:
        why = str(error).strip().splitlines()[-1].removeprefix("error: ")
        raise _refused(field, f"{pattern!r} is no pattern that is read ({why})") from error


def _compiled(pattern: str) -> TypeAdapter[Any]:
    return TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)])


def _matches(matcher: TypeAdapter[Any], module: str) -> bool:
    try:
        matcher.validate_python(module)
    except ValidationError:
        return False
    return True


def _refused(field: str, why: str) -> InvalidInput:
    return InvalidInput(
        "AdapterPattern",
        f"{field} in adapter_config.json cannot be used: {why}; name modules, or write patterns without "
        "look-around and backreferences.",
    )
