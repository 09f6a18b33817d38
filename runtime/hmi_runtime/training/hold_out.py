"""Holding rows out: which are kept away from learning, to choose epoch and rank by, and to judge by."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from hmi_api.errors import InvalidInput
from hmi_runtime.training.labelled import Rows
from hmi_runtime.training.spool import text_fraction

VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class HeldOut:
    """Rows to learn from, and rows kept away from that."""

    train: Rows
    validation: Rows


@dataclass(frozen=True)
class _Group:
    """All rows of one text: they stay together, so that what is held out was never seen in training."""

    numbers: tuple[int, ...]
    labels: frozenset[str]
    fraction: float
    """A number in [0, 1) that depends on the text alone."""
    text: str


def hold_out(rows: Rows, share: float = VALIDATION_SHARE) -> HeldOut:
    """Keep ``share`` of the texts away, at least one, the same ones whatever order the rows come in.

    Stratified: of each label as large a share as of all. A row of several labels, as tags are, counts for the
    rarest of them. No label loses its only text: training sees every label that the rows have. Raises
    ``InvalidInput`` TooFewRows when no text can be held out so.
    """
    groups = _groups(rows)
    left = Counter(label for group in groups for label in group.labels)  # texts that training still has
    strata: dict[str, list[_Group]] = defaultdict(list)
    for group in groups:
        strata[min(group.labels, key=lambda label: (left[label], label))].append(group)
    wanted = _shares({label: len(members) for label, members in strata.items()}, share)
    held: set[int] = set()

    def keep(group: _Group) -> bool:
        may = all(left[label] > 1 for label in group.labels)
        if may:
            left.subtract(group.labels)
            held.update(group.numbers)
        return may

    for label in sorted(strata):
        for group in strata[label]:
            if wanted[label] and keep(group):
                wanted[label] -= 1
    if not held and not any(keep(group) for group in groups):  # strata that were to give could not
        raise InvalidInput(
            "TooFewRows",
            "No row can be held out to choose and judge by: each label has one text only. Give at least two "
            "different texts of a label; some ten of each are better.",
        )
    return HeldOut(
        train=rows.take(number for number in range(len(rows)) if number not in held),
        validation=rows.take(sorted(held)),
    )


def _groups(rows: Rows) -> list[_Group]:
    """Return the rows by text, in an order that depends on the texts alone."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for number, text in enumerate(rows.inputs()):
        numbers[text].append(number)
    answers = rows.answers()
    groups = [
        _Group(
            tuple(members),
            frozenset(label for number in members for label in answers[number]),
            text_fraction(text),
            text,
        )
        for text, members in numbers.items()
    ]
    return sorted(groups, key=lambda group: (group.fraction, group.text))


def _shares(sizes: Mapping[str, int], share: float) -> dict[str, int]:
    """Divide ``share`` of the whole, at least one, among strata by size; the largest remainders get what is
    left.

    No stratum is taken whole.
    """
    total = max(1, round(sum(sizes.values()) * share))
    given = {label: int(size * share) for label, size in sizes.items()}
    order = sorted(sizes, key=lambda label: (given[label] - sizes[label] * share, -sizes[label], label))
    for label in order:
        if sum(given.values()) < total and given[label] < sizes[label] - 1:
            given[label] += 1
    return given
