"""Tags of entities: which scheme they follow and which entities they say. Scorer and server share it.

A tag is ``O`` (outside), or a prefix and a type, such as ``B-PER``; a prefix alone, such as ``B``, is of the
one type ``_``. The schemes are those of seqeval, read as its strict mode does: a stretch that does not
follow the scheme is no entity.

| scheme | an entity of one word | of three words | a neighbour of the same type |
|---|---|---|---|
| IOB1 | I | I I I | begins with B |
| IOB2 | B | B I I | |
| IOE1 | I | I I I | the first ends with E |
| IOE2 | E | I I E | |
| IOBES | S | B I E | |
| BILOU | U | B I L | |
| IOB | either of IOB1 and IOB2 | | |
| IOE | either of IOE1 and IOE2 | | |
| Plain | PER | PER PER PER | is one with it |

The rows that an adapter is trained on tell IOB1 from IOB2 and IOE1 from IOE2. Of an imported adapter only the
labels are known: IOB and IOE read both, as seqeval does without its strict mode. ``Plain`` is for labels
that are no tags, such as parts of speech: a stretch of one label is an entity.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from hmi_api.errors import InvalidInput

OUTSIDE = "O"
UNTYPED = "_"
"""Type of a tag that is a prefix alone, as seqeval has it."""

Span = tuple[int, int, str]
"""An entity: first word, one past the last, and its type."""

_TAG = re.compile(r"([BIESLU])(?:-([^\s-](?:.*\S)?))?", re.DOTALL)
_PREFIXED = re.compile(r"[BIESLUO]-")
_NAMED_AT_MOST = 20


class TagScheme(StrEnum):
    """How tags say where an entity begins and ends."""

    IOB1 = "IOB1"
    IOB2 = "IOB2"
    IOE1 = "IOE1"
    IOE2 = "IOE2"
    IOBES = "IOBES"
    BILOU = "BILOU"
    IOB = "IOB"
    IOE = "IOE"
    PLAIN = "Plain"


@dataclass(frozen=True)
class _Rules:
    """A scheme. ``x`` in a field is a prefix; "alike" means: of the same type as the tag before."""

    prefixes: frozenset[str]
    opens: frozenset[str]
    """x begins an entity wherever it does not go on with one."""
    goes_on: frozenset[str]
    """x goes on with an entity after ``open``, alike."""
    open: frozenset[str]
    ends: frozenset[str]
    """x may be an entity's last."""
    opens_beside: frozenset[str] = frozenset()
    """x begins an entity only after ``beside``, alike."""
    beside: frozenset[str] = frozenset()
    ends_beside: frozenset[str] = frozenset()
    """x may be an entity's last only before a tag alike."""
    ends_before_alike: frozenset[str] = frozenset()
    """x is not an entity's last before x of another type, which the scheme has not."""


def _rules(opens: str, goes_on: str, open_: str, ends: str, **beside: str) -> _Rules:
    sets = {name: frozenset(prefixes) for name, prefixes in beside.items()}
    prefixes = frozenset(opens + goes_on + open_ + ends + "".join(beside.values()))
    return _Rules(prefixes, frozenset(opens), frozenset(goes_on), frozenset(open_), frozenset(ends), **sets)


_SCHEMES: dict[TagScheme, _Rules] = {
    TagScheme.IOB2: _rules("B", "I", "BI", "BI"),
    TagScheme.IOE2: _rules("IE", "IE", "I", "E"),
    TagScheme.IOBES: _rules("BS", "IE", "BI", "ES"),
    TagScheme.BILOU: _rules("BU", "IL", "BI", "LU"),
    TagScheme.IOB1: _rules("I", "I", "BI", "BI", opens_beside="B", beside="BI", ends_before_alike="B"),
    TagScheme.IOE1: _rules("I", "IE", "I", "I", opens_beside="E", beside="E", ends_beside="E"),
    TagScheme.IOB: _rules("BI", "I", "BI", "BI"),
    TagScheme.IOE: _rules("IE", "IE", "I", "IE"),
}
_BY_PREFIXES = (TagScheme.IOB2, TagScheme.IOE2, TagScheme.IOBES, TagScheme.BILOU)
_TOLD_BY_ROWS = {
    TagScheme.IOB2: (TagScheme.IOB2, TagScheme.IOB1),
    TagScheme.IOE2: (TagScheme.IOE2, TagScheme.IOE1),
}
_EITHER = {TagScheme.IOB2: TagScheme.IOB, TagScheme.IOE2: TagScheme.IOE}

_Tag = tuple[str, str]
"""A tag's prefix and type."""
_NONE: _Tag = (OUTSIDE, "")


def scheme_of(labels: Iterable[str], rows: Sequence[Sequence[str]] = ()) -> TagScheme:
    """Return the scheme that a task's ``labels`` follow; ``rows`` of tags tell IOB1 from IOB2, IOE1 from
    IOE2.

    Labels are plain where none is ``O`` and none has a prefix. Else each must be ``O``, a prefix (B, I, E,
    S, L, U), or a prefix, a hyphen and a type, and one scheme must have all the prefixes; ``InvalidInput``
    TagMalformed names those that are wrong.
    """
    labels = set(labels)
    if _are_plain(labels):
        return TagScheme.PLAIN
    wrong = sorted(label for label in labels if label != OUTSIDE and not _TAG.fullmatch(label))
    if wrong:
        named = ", ".join(repr(label) for label in wrong[:_NAMED_AT_MOST])
        raise InvalidInput(
            "TagMalformed",
            f"Tags are O, or a prefix and a type such as B-PER, and these are neither: {named}. Correct "
            "them. "
            "Labels that are no tags of entities, such as parts of speech, have no prefixes and no O.",
        )
    used = {_tag(label)[0] for label in labels} - {OUTSIDE}
    if used <= {"I"}:
        return TagScheme.IOB1
    scheme = next((scheme for scheme in _BY_PREFIXES if used <= _SCHEMES[scheme].prefixes), None)
    if scheme is None:
        raise InvalidInput(
            "TagMalformed",
            f"The tags have the prefixes {', '.join(sorted(used))}, which no scheme has together; write all "
            "of "
            "them in one of IOB2 (B, I), IOE2 (I, E), IOBES (B, I, E, S) and BILOU (B, I, L, U).",
        )
    if not rows:
        return _EITHER.get(scheme, scheme)
    candidates = _TOLD_BY_ROWS.get(scheme, (scheme,))
    return min(candidates, key=lambda candidate: sum(_words_lost(tags, candidate) for tags in rows))


def scheme_or_plain(labels: Iterable[str], rows: Sequence[Sequence[str]] = ()) -> TagScheme:
    """Return the scheme of ``labels`` as ``scheme_of`` does, and ``Plain`` for labels that follow none."""
    labels = set(labels)
    try:
        return scheme_of(labels, rows)
    except InvalidInput:
        return TagScheme.PLAIN


def entities(tags: Sequence[str], scheme: TagScheme) -> list[Span]:
    """Return the entities of a row of ``tags``, in order; what does not follow the scheme is none.

    A tag that the scheme does not have counts as ``O``.
    """
    if scheme is TagScheme.PLAIN:
        return _stretches(tags)
    rules = _SCHEMES[scheme]
    read = [_known(tag, rules) for tag in tags]
    read.append(_NONE)
    found: list[Span] = []
    place, before = 0, _NONE
    while place < len(tags):
        if not _begins(rules, before, read[place]):
            before, place = read[place], place + 1
            continue
        end = place + 1
        while _goes_on(rules, read[end - 1], read[end]):
            end += 1
        before = read[end - 1]
        if _ends(rules, before, read[end]):
            found.append((place, end, before[1]))
        place = end
    return found


def _begins(rules: _Rules, before: _Tag, tag: _Tag) -> bool:
    beside = before[0] in rules.beside and before[1] == tag[1]
    return tag[0] in rules.opens or (tag[0] in rules.opens_beside and beside)


def _goes_on(rules: _Rules, before: _Tag, tag: _Tag) -> bool:
    return tag[0] in rules.goes_on and before[0] in rules.open and before[1] == tag[1]


def _ends(rules: _Rules, tag: _Tag, after: _Tag) -> bool:
    alike = after[1] == tag[1]
    if tag[0] in rules.ends_before_alike and after[0] == tag[0] and not alike:
        return False
    return tag[0] in rules.ends or (tag[0] in rules.ends_beside and alike)


def _tag(label: str) -> _Tag:
    found = _TAG.fullmatch(label)
    return (found[1], found[2] or UNTYPED) if found else _NONE


def _known(label: str, rules: _Rules) -> _Tag:
    tag = _tag(label)
    return tag if tag[0] in rules.prefixes else _NONE


def _are_plain(labels: set[str]) -> bool:
    if OUTSIDE in labels or any(_PREFIXED.match(label) for label in labels):
        return False
    return not all(_TAG.fullmatch(label) for label in labels)


def _stretches(labels: Sequence[str]) -> list[Span]:
    found: list[Span] = []
    start = 0
    for end in range(1, len(labels) + 1):
        if end == len(labels) or labels[end] != labels[start]:
            if labels[start] != OUTSIDE:
                found.append((start, end, labels[start]))
            start = end
    return found


def _words_lost(tags: Sequence[str], scheme: TagScheme) -> int:
    """Return how many words have a tag and are part of no entity."""
    tagged = sum(tag != OUTSIDE for tag in tags)
    return tagged - sum(end - start for start, end, _ in entities(tags, scheme))
