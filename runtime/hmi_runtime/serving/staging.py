"""Staging: rows become the tensors of one batch. Other batches compute meanwhile."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hmi_api.errors import HmiError
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.cache.adapter_cache import AcquiredSlots
from hmi_runtime.models.packing import Int64s, shape_size, starts_of, window_keys
from hmi_runtime.serving.loaded import LoadedAdapter, LoadedDomain
from hmi_runtime.serving.requests import PendingRequest, Text
from hmi_runtime.tables.lookup import LookupSource, lookup_many


@dataclass(frozen=True, slots=True, eq=False)
class BatchRow:
    """One row of a batch: row ``index`` of ``request``."""

    request: PendingRequest
    index: int
    adapter: LoadedAdapter
    text: Text


@dataclass(frozen=True, slots=True, eq=False)
class Representations:
    """Window outputs of the N tokens of the U different (Domain, text) pairs of a batch, without padding.

    Rows with the same text and Domain share one. The texts of a Domain follow one another.
    """

    outputs: Tensor  # (N, 3, D) float32
    lengths: Sequence[int]  # (U,) tokens of each text
    domains: Sequence[LoadedDomain]
    texts: Sequence[int]  # how many texts each of ``domains`` has
    hits: Sequence[int]  # (U,) windows of each text that were not computed
    sources: NDArray[np.int8]  # (N,): the ``LookupSource`` of each window
    ids: Int64s  # (N,): the tokens


@dataclass(frozen=True, slots=True, eq=False)
class StagedBatch:
    """A batch that can be computed: B rows over U representations (None if B is 0)."""

    rows: Sequence[BatchRow]
    representations: Representations | None
    representation_of: Sequence[int]  # (B,)
    slots: Sequence[int]  # (B,)
    acquired: AcquiredSlots[AdapterWeights]
    failed: Sequence[tuple[BatchRow, HmiError]]  # rows whose adapter could not be written to a slot
    staging_seconds: float
    computes_padding: bool = True

    @property
    def longest(self) -> int:
        """Tokens of a row, padding included: at least as many as the longest text has."""
        shared = self.representations
        if shared is None:
            return 0
        longest = max(shared.lengths)
        if not self.computes_padding:
            return longest
        return max(longest, min(shape_size(longest), shared.domains[0].layers.config.encoder.positions))

    @property
    def tokens(self) -> int:
        """Tokens to compute, padding included if it is computed."""
        if self.computes_padding:
            return len(self.rows) * self.longest
        return sum(row.text.length for row in self.rows)


def single(batch: StagedBatch, number: int) -> StagedBatch:
    """Return a batch of one row of ``batch``. The slots stay acquired by ``batch``."""
    shared = batch.representations
    if shared is None:
        raise IndexError(f"row {number} of an empty batch")
    row, place = batch.rows[number], batch.representation_of[number]
    start = sum(shared.lengths[:place])
    span = slice(start, start + shared.lengths[place])
    alone = Representations(
        outputs=shared.outputs[span],
        lengths=[shared.lengths[place]],
        domains=[row.adapter.domain],
        texts=[1],
        hits=[shared.hits[place]],
        sources=shared.sources[span],
        ids=shared.ids[span],
    )
    return replace(
        batch,
        rows=[row],
        representations=alone,
        representation_of=[0],
        slots=[batch.slots[number]],
        failed=[],
        staging_seconds=batch.staging_seconds / len(batch.rows),
    )


def share_texts(rows: Sequence[BatchRow]) -> tuple[list[tuple[LoadedDomain, Text]], list[int]]:
    """Return the different (Domain, text) pairs and the index of each row's pair.

    Pairs are grouped by Domain, and in a Domain sorted by length.
    """
    pairs = {(row.adapter.domain, row.text): None for row in rows}
    order = {domain: number for number, domain in enumerate(dict.fromkeys(domain for domain, _ in pairs))}
    ordered = sorted(pairs, key=lambda pair: (order[pair[0]], pair[1].length))
    place = {pair: number for number, pair in enumerate(ordered)}
    return ordered, [place[row.adapter.domain, row.text] for row in rows]


def look_up(pairs: Sequence[tuple[LoadedDomain, Text]]) -> Representations:
    """Look up every window of one or more (Domain, text) pairs, which are grouped by Domain."""
    lengths = [text.length for _, text in pairs]
    ids = np.fromiter(chain.from_iterable(text.encoding.ids for _, text in pairs), np.int64, sum(lengths))
    vocabulary = pairs[0][0].layers.config.encoder.vocab_size
    texts: Counter[LoadedDomain] = Counter()
    tokens: Counter[LoadedDomain] = Counter()
    for domain, text in pairs:
        texts[domain] += 1
        tokens[domain] += text.length
    spans = [(domain.lookup, count) for domain, count in tokens.items()]
    found = lookup_many(spans, window_keys(ids, lengths, vocabulary + 1))
    hits = np.add.reduceat(found.sources != LookupSource.COMPUTED, starts_of(lengths), dtype=np.int64)
    return Representations(
        outputs=found.outputs,
        lengths=lengths,
        domains=list(texts),
        texts=list(texts.values()),
        hits=hits.tolist(),
        sources=found.sources,
        ids=ids,
    )
