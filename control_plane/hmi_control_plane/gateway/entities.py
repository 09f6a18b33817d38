"""Entities: labelled words merged into stretches, for labels with and without IOB prefixes."""

from collections.abc import Iterable, Sequence

from hmi_api.wire import TokenLabel

OUTSIDE = "O"


def merge_entities(text: str | Sequence[str], tokens: Iterable[TokenLabel]) -> list[TokenLabel]:
    """Return the entities in ``text``; the tokens' ranges are in it, or in its words joined by one space.

    ``B-X`` begins an entity X and ``I-X`` goes on with one; an ``I-X`` after anything else begins one. Labels
    without a prefix go on while they stay the same. An entity's score is the mean of its words'.
    """
    joined = text if isinstance(text, str) else " ".join(text)
    entities: list[TokenLabel] = []
    members: list[TokenLabel] = []
    for token in tokens:
        if members and not _goes_on(members[-1].label, token.label):
            entities.append(_merged(joined, members))
            members = []
        if token.label != OUTSIDE:
            members.append(token)
    if members:
        entities.append(_merged(joined, members))
    return entities


def _split(label: str) -> tuple[str, str]:
    prefix, dash, kind = label.partition("-")
    return (prefix, kind) if dash and prefix in {"B", "I", "E", "S", "L", "U"} else ("", label)


def _goes_on(before: str, label: str) -> bool:
    prefix, kind = _split(label)
    before_prefix, before_kind = _split(before)
    return prefix not in {"B", "S", "U"} and before_prefix not in {"E", "S", "L", "U"} and kind == before_kind


def _merged(text: str, members: Sequence[TokenLabel]) -> TokenLabel:
    start, end = members[0].start, members[-1].end
    return TokenLabel(
        text=text[start:end],
        start=start,
        end=end,
        label=_split(members[0].label)[1],
        score=sum(member.score for member in members) / len(members),
    )
