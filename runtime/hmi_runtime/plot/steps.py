"""In what order a window is looked for: which tables, and how much of the window.

``Compute`` asks the Domain's own table and the ancestors' that the same layers made, for the whole window:
what they hold is exact, and the rest is computed. ``Backoff`` asks the own table for the whole window, for
the bigram with the left neighbour, for the one with the right, for the token alone, and then every
ancestor in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

from torch import Tensor

from hmi_api.errors import InvalidInput
from hmi_api.resources.domain import OnMiss
from hmi_runtime.model.windows import ABSENT
from hmi_runtime.plot.table import PlotTable


class Form(Enum):
    """How much of a window is asked for, as the columns that are left out."""

    TRIGRAM = ()
    LEFT_BIGRAM = (2,)
    RIGHT_BIGRAM = (0,)
    UNIGRAM = (0, 2)

    def of(self, windows: Tensor) -> Tensor:
        """Return ``windows`` (N, 3) int64 with what this form leaves out made ABSENT."""
        if self is Form.TRIGRAM:
            return windows
        reduced = windows.clone()
        reduced[:, list(self.value)] = ABSENT
        return reduced


class Level(IntEnum):
    """Where a window's parts came from; the values are what ``LookupResult.levels`` holds."""

    PADDING = -1
    OWN_TRIGRAM = 0
    OWN_BIGRAM = 1
    OWN_UNIGRAM = 2
    ANCESTOR_TRIGRAM = 3
    ANCESTOR_BIGRAM = 4
    ANCESTOR_UNIGRAM = 5
    RECENT = 6  # computed for an earlier request and kept
    COMPUTED = 7


@dataclass(frozen=True)
class Step:
    """Ask one table for one form of the windows that are still missing."""

    level: Level
    table: PlotTable
    form: Form


_OWN = {
    Form.TRIGRAM: Level.OWN_TRIGRAM,
    Form.LEFT_BIGRAM: Level.OWN_BIGRAM,
    Form.RIGHT_BIGRAM: Level.OWN_BIGRAM,
    Form.UNIGRAM: Level.OWN_UNIGRAM,
}
_ANCESTOR = {
    Form.TRIGRAM: Level.ANCESTOR_TRIGRAM,
    Form.LEFT_BIGRAM: Level.ANCESTOR_BIGRAM,
    Form.RIGHT_BIGRAM: Level.ANCESTOR_BIGRAM,
    Form.UNIGRAM: Level.ANCESTOR_UNIGRAM,
}


def plan_steps(tables: Sequence[PlotTable], layers_digest: str, on_miss: OnMiss) -> list[Step]:
    """Return the steps for ``tables``, the Domain's own first and then its ancestors', nearest first.

    Raises ``InvalidInput`` TableOfOtherLayers when the own table was not made by ``layers_digest``.
    """
    if tables and tables[0].layers_digest != layers_digest:
        raise InvalidInput(
            "TableOfOtherLayers",
            f"The Domain's table was made by layers {tables[0].layers_digest}, not {layers_digest}; "
            "build its table again.",
        )
    names = [_OWN if position == 0 else _ANCESTOR for position in range(len(tables))]
    if on_miss is OnMiss.COMPUTE:
        return [
            Step(level[Form.TRIGRAM], table, Form.TRIGRAM)
            for table, level in zip(tables, names, strict=True)
            if table.layers_digest == layers_digest and table.entries
        ]
    return [
        Step(level[form], table, form)
        for table, level in zip(tables, names, strict=True)
        if table.entries
        for form in Form
    ]
