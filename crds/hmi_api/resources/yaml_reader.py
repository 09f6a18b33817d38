"""Reads YAML and JSON as kubectl does, with limits on size and work.

Plain scalars are read as in YAML 1.1 without dates and base 60. Duplicate keys are refused. Nothing recurses,
so nesting cannot exhaust the stack, and the number of values is limited after aliases are expanded.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from hmi_api.errors import InvalidInput

MALFORMED = "MalformedYaml"
TOO_LARGE = "ManifestTooLarge"
_EXACT = 2**53
"""Below this, floating point holds every whole number."""


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


def read_documents(data: bytes | str, bounds: Bounds = Bounds()) -> list[Any]:
    """Return the documents of a text as values that JSON can hold; an empty document is None.

    Raises ``InvalidInput``: MalformedYaml, or ManifestTooLarge beyond ``bounds``.
    """
    text = _decoded(data, bounds)
    documents = _read_json(text) if text.lstrip()[:1] in ("{", "[") else None
    if documents is None:
        return list(_build(_events(text), bounds))
    _check_bounds(documents, bounds)
    return documents


def is_plain_text(text: str) -> bool:
    """Return whether a text without quotes would be read as that text."""
    try:
        return bool(_plain(text, 0) == text)
    except InvalidInput:
        return False


def _decoded(data: bytes | str, bounds: Bounds) -> str:
    size = len(data)
    if size <= bounds.size and isinstance(data, str):
        try:
            size = len(data.encode())
        except UnicodeEncodeError as error:  # bytes that were no UTF-8, as Python keeps them from a file
            raise _not_utf8(data.count("\n", 0, error.start) + 1) from error
    if size > bounds.size:
        raise InvalidInput(TOO_LARGE, f"it is larger than {bounds.size} bytes; split it into several files")
    if isinstance(data, str):
        return data
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(data.count(b"\n", 0, error.start) + 1) from error


def _not_utf8(line: int) -> InvalidInput:
    return InvalidInput(MALFORMED, f"line {line} has bytes that are not UTF-8; save the file as UTF-8")


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
    raise InvalidInput(MALFORMED, f"{word} is not a number that JSON can hold; write a finite number")


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
                _check_unicode(value)
        layer = below


def _check_unicode(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(MALFORMED, f"{ascii(value)[:60]} is not Unicode text") from error


def _too_deep() -> InvalidInput:
    return InvalidInput(TOO_LARGE, "its lists and maps are nested too deeply")


def _too_many(bounds: Bounds) -> InvalidInput:
    return InvalidInput(
        TOO_LARGE, f"it holds more than {bounds.values} values once its aliases are expanded; split it"
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


@dataclass
class _Open:
    """A list or a map whose end has not come yet."""

    value: list[Any] | dict[str, Any]
    anchor: str | None
    line: int
    """Where it begins, from 1."""
    counted_before: int
    key: str | None = None
    """The key whose value comes next; None where a key comes next."""
    merging: bool = False
    """The value that comes next is merged into the map, which wins where both have a key."""
    merged: list[Any] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)
    """Where each key is, from 1."""


@dataclass(frozen=True)
class _Anchored:
    value: Any
    size: int


def _build(events: Iterable[yaml.Event], bounds: Bounds) -> Iterator[Any]:
    """Yield the documents that the events make."""
    builder = _Builder(bounds)
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            builder.begin_document()
        elif isinstance(event, yaml.DocumentEndEvent):
            yield builder.document
        elif isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
            builder.take(event)


class _Builder:
    """Makes a document of its events, with a stack of the lists and maps that are open."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._documents = 0
        self._count = 0
        self._anchors: dict[str, _Anchored | None] = {}
        """What stands under each anchor; None where its end has not come yet."""
        self._stack: list[_Open] = []

    @property
    def document(self) -> Any:
        """The document that has ended."""
        (value,) = self._stack[0].value
        return value

    def begin_document(self) -> None:
        """Begin a document; anchors hold for one document only."""
        self._documents += 1
        if self._documents > self._bounds.documents:
            raise InvalidInput(
                TOO_LARGE, f"it has more than {self._bounds.documents} documents; split it into several files"
            )
        self._anchors, self._stack = {}, [_Open([], None, 1, self._count)]

    def take(self, event: yaml.Event) -> None:
        """Go on by one event. Raises ``InvalidInput``."""
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.CollectionStartEvent):
            self._open(event, line)
        elif isinstance(event, yaml.CollectionEndEvent):
            ended = self._stack.pop()
            self._add(_closed(ended), ended.anchor, self._count - ended.counted_before, ended.line)
        elif isinstance(event, yaml.AliasEvent):
            found = self._anchored(str(event.anchor), line)
            self._grow(found.size)
            self._add(found.value, None, found.size, line)
        elif isinstance(event, yaml.ScalarEvent):
            self._grow(1)
            value = _scalar(event, line)
            self._add(value, event.anchor, 1, line, is_merge=_is_merge(event))

    def _open(self, event: yaml.CollectionStartEvent, line: int) -> None:
        if len(self._stack) > self._bounds.depth:
            raise _too_deep()
        if event.tag not in _COLLECTION_TAGS:
            raise InvalidInput(MALFORMED, f"line {line}: the tag {event.tag} is not known; remove it")
        if event.anchor:
            self._anchors[event.anchor] = None
        empty: list[Any] | dict[str, Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._stack.append(_Open(empty, event.anchor, line, self._count))
        self._grow(1)

    def _grow(self, size: int) -> None:
        self._count += size
        if self._count > self._bounds.values:
            raise _too_many(self._bounds)

    def _anchored(self, anchor: str, line: int) -> _Anchored:
        if anchor not in self._anchors:
            raise InvalidInput(MALFORMED, f"line {line} uses the alias *{anchor}, which no anchor defines")
        found = self._anchors[anchor]
        if found is None:
            raise InvalidInput(MALFORMED, f"line {line}: the anchor &{anchor} contains itself")
        return found

    def _add(self, value: Any, anchor: str | None, size: int, line: int, *, is_merge: bool = False) -> None:
        if anchor:
            self._anchors[anchor] = _Anchored(value, size)
        _put(self._stack[-1], value, line, is_merge=is_merge)


def _put(holder: _Open, value: Any, line: int, *, is_merge: bool) -> None:
    """Put a value where it belongs in the list or map that is open."""
    if isinstance(holder.value, list):
        holder.value.append(value)
    elif holder.merging:
        holder.merged += _maps_to_merge(value, line)
        holder.merging = False
    elif holder.key is not None:
        holder.value[holder.key] = value
        holder.key = None
    elif is_merge:
        holder.merging = True
    else:
        key = _key(value, line)
        if key in holder.lines:
            raise InvalidInput(
                MALFORMED,
                f'the key "{key}" is written twice, on lines {holder.lines[key]} and {line}; keep one',
            )
        holder.lines[key] = line
        holder.key = key


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


def _closed(ended: _Open) -> Any:
    """Return the value of a list or map whose end has come; of merged maps the first wins."""
    if isinstance(ended.value, dict):
        for one in ended.merged:
            for key, value in one.items():
                ended.value.setdefault(key, value)
    return ended.value


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


def _is_merge(event: yaml.ScalarEvent) -> bool:
    return event.value == "<<" and (event.implicit[0] or event.tag == f"{_TAG}merge")


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
        raise InvalidInput(MALFORMED, f"line {line}: {text} is not a number that JSON can hold")
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
