"""Reads YAML and JSON as kubectl does, with limits on size and work.

Plain scalars are read as in YAML 1.1 without dates and base 60. Duplicate keys are refused. The depth of
nesting and the number of values, with aliases expanded, are limited while the text is parsed.
"""

import base64
import binascii
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from hmi_api.errors import InvalidInput

MALFORMED = "MalformedYaml"
TOO_LARGE = "ManifestTooLarge"
_EXACT = 2**53
"""Below this, floating point represents every whole number."""


@dataclass(frozen=True)
class Bounds:
    """How much of a text is read before it is refused."""

    size: int = 32 * 1024 * 1024
    """Bytes of UTF-8."""
    depth: int = 64
    """Lists and maps inside one another."""
    values: int = 1_000_000
    """Scalars, lists and maps of the whole text; each use of an alias counts as all that it stands for."""
    documents: int = 10_000


def read_documents(data: bytes, bounds: Bounds = Bounds()) -> list[Any]:
    """Return the documents of a UTF-8 text as JSON values; an empty document is None.

    Raises ``InvalidInput``: MalformedYaml, or ManifestTooLarge beyond ``bounds``.
    """
    text = _decoded(data, bounds)
    documents = _read_json(text) if text.lstrip()[:1] in ("{", "[") else None
    if documents is None:
        return list(_Builder(_events(text), bounds).documents())
    _check_bounds(documents, bounds)
    return documents


def is_plain_text(text: str) -> bool:
    """Return whether a text without quotes would be read as that text."""
    try:
        return bool(_plain(text, 0) == text)
    except InvalidInput:
        return False


def _decoded(data: bytes, bounds: Bounds) -> str:
    if len(data) > bounds.size:
        raise InvalidInput(TOO_LARGE, f"it is larger than {bounds.size} bytes; split it into several files")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidInput(
            MALFORMED, f"line {line} has bytes that are not UTF-8; save the file as UTF-8"
        ) from error


# --- JSON -----------------------------------------------------------------------------------------


def _read_json(text: str) -> list[Any] | None:
    """Return the one document of a JSON text; None where it is not JSON, but may be YAML."""
    try:
        return [json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_real)]
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError:
        return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value] # add returns None
        raise InvalidInput(MALFORMED, f'the key "{twice}" is written twice in one object; remove one of them')
    return made


def _real(number: str) -> float | int:
    """Return a number with a point or exponent; a whole one is an int, as kubectl sends it."""
    real = float(number)
    return int(real) if real.is_integer() and abs(real) < _EXACT else real


def _no_constant(word: str) -> None:
    raise InvalidInput(MALFORMED, f"{word} is not a number in JSON; write a finite number")


def _check_bounds(documents: list[Any], bounds: Bounds) -> None:
    """Raise ``InvalidInput`` where JSON is too deep, too much or has text that is no Unicode."""
    left = bounds.values
    layer: list[Any] = documents
    for depth in range(bounds.depth + 1):
        left -= len(layer)
        if left < 0:
            raise _too_many(bounds)
        below: list[Any] = []
        for value in layer:
            if isinstance(value, dict | list):
                if depth == bounds.depth:
                    raise _too_deep()
                below += value
                below += value.values() if isinstance(value, dict) else []
            elif isinstance(value, str) and not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError as error:
                    raise InvalidInput(MALFORMED, f"{ascii(value)[:60]} is not Unicode text") from error
        layer = below


def _too_deep() -> InvalidInput:
    return InvalidInput(TOO_LARGE, "its lists and maps are nested too deeply")


def _too_many(bounds: Bounds) -> InvalidInput:
    return InvalidInput(
        TOO_LARGE, f"it has more than {bounds.values} values once its aliases are expanded; split it"
    )


# --- YAML -----------------------------------------------------------------------------------------


def _events(text: str) -> Iterator[yaml.Event]:
    # libyaml's parser where PyYAML was built with it: ten times as fast, and the same events.
    loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    try:
        yield from yaml.parse(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        if "nesting" in str(error.problem):  # libyaml has a bound of its own
            raise _too_deep() from error
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise InvalidInput(MALFORMED, f"{error.problem or error.context}{where}") from error
    except yaml.YAMLError as error:
        raise InvalidInput(MALFORMED, " ".join(str(error).split())) from error


@dataclass(frozen=True)
class _Anchored:
    value: Any
    size: int
    """Values in it, itself included."""


class _Builder:
    """Builds the values of the documents from the events."""

    def __init__(self, events: Iterator[yaml.Event], bounds: Bounds) -> None:
        self._events = events
        self._bounds = bounds
        self._count = 0
        self._anchors: dict[str, _Anchored | None] = {}
        """Of the current document; None until the end of the value has come."""

    def documents(self) -> Iterator[Any]:
        """Yield the value of each document. Raises ``InvalidInput``."""
        starts = (event for event in self._events if isinstance(event, yaml.DocumentStartEvent))
        for number, _ in enumerate(starts):
            if number == self._bounds.documents:
                raise InvalidInput(
                    TOO_LARGE, f"it has more than {number} documents; split it into several files"
                )
            self._anchors = {}
            yield self._value(next(self._events), depth=0)

    def _value(self, event: yaml.Event, depth: int) -> Any:
        line = _line(event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(str(event.anchor), line)
        before = self._count
        self._grow(1)
        if isinstance(event, yaml.CollectionStartEvent):
            value = self._collection(event, line, depth)
        elif isinstance(event, yaml.ScalarEvent):
            value = _scalar(event, line)
        if isinstance(event, yaml.NodeEvent) and event.anchor:
            self._anchors[event.anchor] = _Anchored(value, self._count - before)
        return value

    def _collection(self, event: yaml.CollectionStartEvent, line: int, depth: int) -> Any:
        if depth == self._bounds.depth:
            raise _too_deep()
        if event.tag not in _COLLECTION_TAGS:
            raise InvalidInput(MALFORMED, f"line {line}: the tag {event.tag} is not known; remove it")
        if event.anchor:
            self._anchors[event.anchor] = None
        return self._map(depth + 1) if isinstance(event, yaml.MappingStartEvent) else self._list(depth + 1)

    def _list(self, depth: int) -> list[Any]:
        return [self._value(event, depth) for event in self._until(yaml.SequenceEndEvent)]

    def _map(self, depth: int) -> dict[str, Any]:
        """Return a map; where it and the maps merged into it have a key in common, the first wins."""
        made: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: list[dict[str, Any]] = []
        for event in self._until(yaml.MappingEndEvent):
            line = _line(event)
            key = self._value(event, depth)
            if _is_merge(event):
                value = next(self._events)
                merged += _maps_to_merge(self._value(value, depth), _line(value))
                continue
            key = _key(key, line)
            if key in made:
                raise InvalidInput(
                    MALFORMED, f'the key "{key}" is written twice, on lines {lines[key]} and {line}; keep one'
                )
            lines[key] = line
            made[key] = self._value(next(self._events), depth)
        for one in merged:
            for name, item in one.items():
                made.setdefault(name, item)
        return made

    def _until(self, end: type[yaml.Event]) -> Iterator[yaml.Event]:
        """Yield the first event of each value of the list or map that is open."""
        return itertools.takewhile(lambda event: not isinstance(event, end), self._events)

    def _alias(self, anchor: str, line: int) -> Any:
        if anchor not in self._anchors:
            raise InvalidInput(MALFORMED, f"line {line} uses the alias *{anchor}, which no anchor defines")
        found = self._anchors[anchor]
        if found is None:
            raise InvalidInput(MALFORMED, f"line {line}: the anchor &{anchor} contains itself")
        self._grow(found.size)
        return found.value

    def _grow(self, size: int) -> None:
        self._count += size
        if self._count > self._bounds.values:
            raise _too_many(self._bounds)


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


def _key(value: Any, line: int) -> str:
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, dict | list):
        raise InvalidInput(MALFORMED, f"line {line} has a key that is not text; write it in quotes")
    return json.dumps(value)


def _maps_to_merge(value: Any, line: int) -> list[dict[str, Any]]:
    maps = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) for one in maps):
        raise InvalidInput(MALFORMED, f"line {line}: << takes a map or a list of maps")
    return maps


_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
}
_INTEGER = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_NO_NUMBER = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LONGEST_NUMBER = 64
_TAG = "tag:yaml.org,2002:"
_STRING_TAGS = {"!", f"{_TAG}str", f"{_TAG}timestamp"}
_COLLECTION_TAGS = {None, "!", f"{_TAG}seq", f"{_TAG}map"}


def _is_merge(event: yaml.Event) -> bool:
    return (
        isinstance(event, yaml.ScalarEvent)
        and event.value == "<<"
        and (event.implicit[0] or event.tag == f"{_TAG}merge")
    )


def _scalar(event: yaml.ScalarEvent, line: int) -> Any:
    if event.tag is None:
        return _plain(event.value, line) if event.implicit[0] else event.value
    if event.tag in _STRING_TAGS:
        return event.value
    read = _TAGGED.get(event.tag)
    if read is None:
        raise InvalidInput(MALFORMED, f"line {line}: the tag {event.tag} is not known; remove it")
    return read(event.value, line)


def _plain(text: str, line: int) -> Any:
    """Return what a scalar without quotes means to kubectl."""
    if text in _WORDS:
        return _WORDS[text]
    if _NO_NUMBER.fullmatch(text):
        raise InvalidInput(MALFORMED, f"line {line}: {text} is not a number in JSON")
    number = text.replace("_", "")
    if len(number) > _LONGEST_NUMBER:
        return text
    if found := _INTEGER.fullmatch(number):
        whole = _whole(number, found[1])
        if -(2**63) <= whole < 2**64:
            return whole
    if _FLOAT.fullmatch(number):
        return text if math.isinf(float(number)) else _real(number)
    return text


def _whole(number: str, digits: str) -> int:
    octal = len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
    whole = int(digits, 8 if octal else 0)
    return -whole if number[0] == "-" else whole


def _as(kinds: tuple[type, ...], name: str) -> Callable[[str, int], Any]:
    def read(text: str, line: int) -> Any:
        value = _plain(text, line)
        if type(value) not in kinds:
            raise InvalidInput(MALFORMED, f"line {line}: {text!r} is not a value of !!{name}")
        return value

    return read


def _binary(text: str, line: int) -> str:
    try:
        return base64.b64decode("".join(text.split()), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise InvalidInput(MALFORMED, f"line {line}: !!binary is not base64 of UTF-8 text") from error


_TAGGED: dict[str, Callable[[str, int], Any]] = {
    f"{_TAG}int": _as((int,), "int"),
    f"{_TAG}float": _as((float, int), "float"),
    f"{_TAG}bool": _as((bool,), "bool"),
    f"{_TAG}null": _as((type(None),), "null"),
    f"{_TAG}binary": _binary,
}
