"""Entities: labelled words merged into stretches, by the scheme that the scorer of the gate uses too."""

from collections.abc import Sequence

from hmi_api.internal.inference import RowResult, TokenLabel
from hmi_api.tag_schemes import entities, scheme_or_plain


def merge_entities(text: str | Sequence[str], result: RowResult) -> list[TokenLabel]:
    """Return the entities in ``text``; the tokens' ranges are in it, or in its words joined by one space.

    A stretch that does not follow the adapter's scheme is none (``hmi_api.tag_schemes``). An entity's score
    is the mean of its words'.
    """
    joined = text if isinstance(text, str) else " ".join(text)
    scheme = result.tag_scheme or scheme_or_plain(result.labels)
    found = entities([token.label for token in result.tokens], scheme)
    return [_merged(joined, result.tokens[start:end], kind) for start, end, kind in found]


def _merged(text: str, members: Sequence[TokenLabel], kind: str) -> TokenLabel:
    start, end = members[0].start, members[-1].end
    return TokenLabel(
        text=text[start:end],
        start=start,
        end=end,
        label=kind,
        score=sum(member.score for member in members) / len(members),
    )
