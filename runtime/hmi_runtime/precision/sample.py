"""The text on which kernels are timed and compared: texts of a Domain's own frequent windows.

A runtime has no training text. But a Domain's table has the windows of three tokens that its owner's corpus
has most often. They are chained where the last two tokens of one are the first two of the next, so the texts
read like the corpus, and the layers are given what they are given in service. The text is made in memory from
a table that the runtime serves anyway, is neither stored nor sent, and contains no text of any request.
"""

from collections import defaultdict, deque
from dataclasses import dataclass

import torch
from torch import Tensor

from hmi_runtime.models.windows import ABSENT, pack, trigrams, unpack
from hmi_runtime.serving.loaded import LoadedDomain
from hmi_runtime.tables.table import LookupTable, PlotTable
from hmi_runtime.tables.tiers import TieredTable

ROWS, LENGTH = 8, 32
"""256 tokens: enough for 2,048 predictions, and few enough to measure in a second."""
_MOST_WINDOWS = 8192
"""The most frequent windows that texts are made of."""


@dataclass(frozen=True)
class Sample:
    """Inputs of the first upper layer, without padding."""

    hidden: Tensor  # (B, T, D) float32
    source: str
    """What it was made of, for people."""


def domain_sample(domain: LoadedDomain, rows: int = ROWS, length: int = LENGTH) -> Sample:
    """Return up to ``rows`` texts of ``length`` tokens of a Domain; of random words if it has no table."""
    config = domain.layers.config.encoder
    length = min(length, config.positions)
    table = next((_on_disk(table) for table in domain.lookup.tables if table.entries), None)
    name = f"{domain.key}@{domain.version}"
    if table is None:
        ids = torch.randint(config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
        return Sample(_represent(domain, ids, None), f"random words on {name}")
    ids = frequent_texts(table, rows, length)
    return Sample(_represent(domain, ids, table), f"windows of {name}")


def _on_disk(table: LookupTable) -> PlotTable:
    """Return the mapped file of a table in tiers: reading it counts as no traffic and admits no row."""
    mapped = table.whole if isinstance(table, TieredTable) else table
    if not isinstance(mapped, PlotTable):
        raise TypeError(f"{type(table).__name__} has no keys to read")
    return mapped


def frequent_texts(table: PlotTable, rows: int, length: int) -> Tensor:
    """Return ids (rows, length) int64: chains of the table's windows, the most frequent first.

    A text begins like one of the corpus where there is such a window left. It goes on with the most frequent
    unused window that fits its last two tokens, else with the most frequent unused one. Deterministic.
    """
    windows = _Windows(table)
    texts = []
    for _ in range(rows):
        text = windows.take_start()
        while len(text) < length:
            following = windows.take_following(text[-2], text[-1])
            text += windows.take_any() if following is None else [following]
        texts.append(text[:length])
    return torch.tensor(texts)


class _Windows:
    """The most frequent windows of a table, each taken once before any is taken again."""

    def __init__(self, table: PlotTable) -> None:
        windows: list[tuple[int, int, int]] = unpack(table.keys[:_MOST_WINDOWS], table.vocab_size).tolist()
        # A window without a right token ends a text, or is a bigram or a token of a table for Backoff.
        self._windows = [window for window in windows if window[2] != ABSENT] or windows
        self._fill()

    def take_start(self) -> list[int]:
        """Return the first tokens of a text, at least two where a window has them."""
        return self._tokens(self._take(self._starts))

    def take_following(self, left: int, centre: int) -> int | None:
        """Return a token that follows two others in the corpus; None if no such window is left."""
        number = self._take(self._by_left[left, centre])
        return None if number is None else self._windows[number][2]

    def take_any(self) -> list[int]:
        """Return the tokens of a window."""
        number = self._take(self._rest)
        if number is None:
            self._fill()
            number = self._take(self._rest)
        return self._tokens(number)

    def _fill(self) -> None:
        self._used: set[int] = set()
        self._rest = deque(range(len(self._windows)))
        self._starts = deque(number for number, window in enumerate(self._windows) if window[0] == ABSENT)
        self._by_left: defaultdict[tuple[int, int], deque[int]] = defaultdict(deque)
        for number, (left, centre, right) in enumerate(self._windows):
            if right != ABSENT:
                self._by_left[left, centre].append(number)

    def _take(self, waiting: deque[int]) -> int | None:
        while waiting:
            number = waiting.popleft()
            if number not in self._used:
                self._used.add(number)
                return number
        return None

    def _tokens(self, number: int | None) -> list[int]:
        window = self.take_any() if number is None else self._windows[number]
        tokens = [token for token in window if token != ABSENT]
        return tokens if len(tokens) > 1 else 2 * tokens


@torch.inference_mode()
def _represent(domain: LoadedDomain, ids: Tensor, table: PlotTable | None) -> Tensor:
    """Return the states (B, T, D) at the split; windows that ``table`` has are not computed."""
    layers = domain.layers
    device = layers.word.device
    mask = torch.ones_like(ids, dtype=torch.bool)
    if table is None or table.layers_digest != domain.layers_digest:
        return layers.represent(ids.to(device), mask.to(device))
    windows = trigrams(ids, mask).flatten(0, 1)  # (N, 3)
    found = table.find(pack(windows, layers.config.encoder.vocab_size))
    outputs = table.gather(found.clamp_min(0)).to(device)  # (N, 3, D)
    missing = (found < 0).nonzero()[:, 0]
    if len(missing):
        outputs[missing.to(device)] = layers.window_outputs(windows[missing].to(device))
    return layers.combine_windows(outputs.view(*ids.shape, *outputs.shape[1:]), mask.to(device))
