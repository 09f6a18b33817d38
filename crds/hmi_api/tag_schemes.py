"""Tags of entities: the scheme that they follow, and the entities that they mark, for scores and answers.

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

The training rows of an adapter distinguish IOB1 from IOB2 and IOE1 from IOE2. Of an imported adapter only
the labels are known: IOB and IOE accept both, as seqeval does without its strict mode. ``Plain`` is for
labels that are not tags, such as parts of speech: a stretch of one label is an entity.
"""

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import lru_cache

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


_PATTERNS = {
    TagScheme.IOB2: "BI*",
    TagScheme.IOE2: "(?<!I)I*E",
    TagScheme.IOBES: "BI*E|S",
    TagScheme.BILOU: "BI*L|U",
    TagScheme.IOB1: "(?<=[BI])BI+|(?<=[BI])B(?!b)|I+",
    TagScheme.IOE1: "(?<!I)I+E(?=[IE])|(?<=E)E(?=[IE])|(?<!I)I+(?![IE])",
    TagScheme.IOB: "[BI]I*",
    TagScheme.IOE: "I*E|I+",
}
"""The entities of a scheme in the prefixes of a stretch of tags of one type. A small letter may follow the
stretch: the prefix of the next tag, which is of another type. ``(?<!I)`` keeps the time linear: without it,
a run of I that is no entity is read again from each of its tags."""
_COMPILED = {scheme: re.compile(pattern) for scheme, pattern in _PATTERNS.items()}
_PREFIXES = {scheme: set("BIESLU").intersection(pattern) for scheme, pattern in _PATTERNS.items()}
_BY_PREFIXES = (TagScheme.IOB2, TagScheme.IOE2, TagScheme.IOBES, TagScheme.BILOU)
_VARIANTS = {
    TagScheme.IOB2: (TagScheme.IOB1, TagScheme.IOB),
    TagScheme.IOE2: (TagScheme.IOE1, TagScheme.IOE),
}
"""The other scheme of the same prefixes, which rows distinguish, and the scheme that accepts both."""

_Tag = tuple[str, str]
"""A tag's prefix and type."""
_NONE: _Tag = (OUTSIDE, "")


def scheme_of(labels: Iterable[str], rows: Sequence[Sequence[str]] = ()) -> TagScheme:
    """Return the scheme that a task's ``labels`` follow; ``rows`` of tags distinguish IOB1 from IOB2 and
    IOE1 from IOE2.

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
            f"A tag is O, or a prefix and a type such as B-PER; these are neither: {named}. Correct them. "
            "Labels that are not tags of entities, such as parts of speech, have no prefixes and no O.",
        )
    used = {_tag(label)[0] for label in labels} - {OUTSIDE}
    if used <= {"I"}:
        return TagScheme.IOB1
    scheme = next((scheme for scheme in _BY_PREFIXES if used <= _PREFIXES[scheme]), None)
    if scheme is None:
        raise InvalidInput(
            "TagMalformed",
            f"The tags have the prefixes {', '.join(sorted(used))}, which no scheme has together; write all "
            "tags in one of IOB2 (B, I), IOE2 (I, E), IOBES (B, I, E, S) and BILOU (B, I, L, U).",
        )
    other, either = _VARIANTS.get(scheme, (scheme, scheme))
    if not rows:
        return either
    return min((scheme, other), key=lambda candidate: sum(_words_lost(tags, candidate) for tags in rows))


def scheme_or_plain(labels: Iterable[str], rows: Sequence[Sequence[str]] = ()) -> TagScheme:
    """Return the scheme of ``labels`` as ``scheme_of`` does, and ``Plain`` for labels that follow none."""
    labels = set(labels)
    try:
        return scheme_of(labels, rows)
    except InvalidInput:
        return TagScheme.PLAIN


def entities(tags: Sequence[str], scheme: TagScheme) -> list[Span]:
    """Return the entities of a row of ``tags``, in order; tags that do not follow the scheme are ignored.

    A tag that the scheme does not have counts as ``O``.
    """
    if scheme is TagScheme.PLAIN:
        return _stretches(tags, OUTSIDE)
    read = [tag if tag[0] in _PREFIXES[scheme] else _NONE for tag in map(_tag, tags)]
    prefixes = [prefix for prefix, _ in read]
    found: list[Span] = []
    for start, end, type_ in _stretches([type_ for _, type_ in read], ""):
        stretch = "".join(prefixes[start:end]) + "".join(prefixes[end : end + 1]).lower()
        matches = _COMPILED[scheme].finditer(stretch)
        found += [(start + match.start(), start + match.end(), type_) for match in matches]
    return found


@lru_cache(maxsize=1024)  # the gateway reads the same few labels for each word
def _tag(label: str) -> _Tag:
    found = _TAG.fullmatch(label)
    return (found[1], found[2] or UNTYPED) if found else _NONE


def _are_plain(labels: set[str]) -> bool:
    if OUTSIDE in labels or any(_PREFIXED.match(label) for label in labels):
        return False
    return not all(_TAG.fullmatch(label) for label in labels)


def _stretches(labels: Sequence[str], outside: str) -> list[Span]:
    """Return the stretches of equal labels other than ``outside``."""
    found: list[Span] = []
    start = 0
    for end in range(1, len(labels) + 1):
        if end == len(labels) or labels[end] != labels[start]:
            if labels[start] != outside:
                found.append((start, end, labels[start]))
            start = end
    return found


def _words_lost(tags: Sequence[str], scheme: TagScheme) -> int:
    """Return how many words have a tag and are part of no entity."""
    tagged = sum(tag != OUTSIDE for tag in tags)
    return tagged - sum(end - start for start, end, _ in entities(tags, scheme))
