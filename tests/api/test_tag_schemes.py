"""Entities are those that seqeval finds in its strict mode."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, IOE1, IOE2, Token, Tokens

from hmi_api.errors import InvalidInput
from hmi_api.tag_schemes import TagScheme, entities, scheme_of, scheme_or_plain

SEQEVAL = {
    TagScheme.IOB1: (IOB1, "BI"),
    TagScheme.IOB2: (IOB2, "BI"),
    TagScheme.IOE1: (IOE1, "IE"),
    TagScheme.IOE2: (IOE2, "IE"),
    TagScheme.IOBES: (IOBES, "BIES"),
    TagScheme.BILOU: (BILOU, "BILU"),
}


def of_seqeval(tags: list[str], scheme: type[Token]) -> list[tuple[int, int, str]]:
    return [(found.start, found.end, found.tag) for found in Tokens(tags, scheme).entities]


@pytest.mark.parametrize("scheme", SEQEVAL)
@settings(deadline=None)  # the first example may wait for a busy machine
@given(data=st.data())
def test_entities_are_those_of_seqevals_strict_mode(scheme: TagScheme, data: st.DataObject) -> None:
    theirs, prefixes = SEQEVAL[scheme]
    tag = st.sampled_from(["O", *(f"{prefix}{kind}" for prefix in prefixes for kind in ("-A", "-B-C", ""))])
    tags = data.draw(st.lists(tag, max_size=12))
    assert entities(tags, scheme) == of_seqeval(tags, theirs)


@pytest.mark.parametrize(
    ("row", "scheme", "expected"),
    [
        ("B-P I-P O B-L", TagScheme.IOB2, [(0, 2, "P"), (3, 4, "L")]),
        ("I-P I-P O", TagScheme.IOB2, []),
        ("I-P I-P B-P", TagScheme.IOB1, [(0, 2, "P"), (2, 3, "P")]),
        ("S-P B-P E-P", TagScheme.IOBES, [(0, 1, "P"), (1, 3, "P")]),
        ("B-P O", TagScheme.IOBES, []),
        ("U-P B-P L-P", TagScheme.BILOU, [(0, 1, "P"), (1, 3, "P")]),
        ("I-P E-P E-P", TagScheme.IOE2, [(0, 2, "P"), (2, 3, "P")]),
        ("I-P I-P O B-P", TagScheme.IOB, [(0, 2, "P"), (3, 4, "P")]),
        ("I-P O I-P E-P", TagScheme.IOE, [(0, 1, "P"), (2, 4, "P")]),
        ("B I O", TagScheme.IOB2, [(0, 2, "_")]),
        ("PER PER O LOC", TagScheme.PLAIN, [(0, 2, "PER"), (3, 4, "LOC")]),
    ],
)
def test_entities_by_scheme(row: str, scheme: TagScheme, expected: list[tuple[int, int, str]]) -> None:
    assert entities(row.split(), scheme) == expected


@pytest.mark.parametrize("scheme", TagScheme)
def test_a_long_row_is_read_in_linear_time(scheme: TagScheme) -> None:
    row = ["I-P"] * 200_000  # quadratic, one of these took minutes
    for last in ("I-P", "E-P", "B-P", "L-P"):
        started = time.process_time()
        entities([*row, last], scheme)
        assert time.process_time() - started < 10


@pytest.mark.parametrize(
    ("labels", "rows", "scheme"),
    [
        ("O B-P I-P", ["O B-P I-P"], TagScheme.IOB2),
        ("O B-P I-P", ["O I-P I-P B-P"], TagScheme.IOB1),
        ("O B-P I-P", [], TagScheme.IOB),
        ("O I-P", ["O I-P"], TagScheme.IOB1),
        ("O I-P E-P", ["I-P E-P E-P"], TagScheme.IOE2),
        ("O I-P E-P", ["I-P I-P O I-P E-P I-P"], TagScheme.IOE1),
        ("O I-P E-P", [], TagScheme.IOE),
        ("O S-P", ["S-P"], TagScheme.IOBES),
        ("O B-P E-P", [], TagScheme.IOBES),
        ("O B-P I-P L-P U-P", [], TagScheme.BILOU),
        ("B I", ["B I"], TagScheme.IOB2),
        ("NOUN VERB", ["NOUN VERB"], TagScheme.PLAIN),
        ("NOUN I", ["NOUN I"], TagScheme.PLAIN),
    ],
)
def test_labels_and_rows_determine_the_scheme(labels: str, rows: list[str], scheme: TagScheme) -> None:
    assert scheme_of(labels.split(), [row.split() for row in rows]) is scheme


@pytest.mark.parametrize("labels", ["O B-", "O foo", "B-P foo", "O O-P", "O B--P", "O B-P S-P U-P", "O b-P"])
def test_malformed_tags_are_refused_by_name(labels: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        scheme_of(labels.split())
    assert raised.value.reason == "TagMalformed"
    assert scheme_or_plain(labels.split()) is TagScheme.PLAIN
