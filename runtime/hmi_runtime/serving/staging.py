"""Staging: rows become the tensors of one batch. Other batches compute meanwhile."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hmi_api.errors import HmiError
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.cache.adapter_cache import AcquiredSlots
from hmi_runtime.models.architecture import EncoderConfig
from hmi_runtime.models.windows import trigrams
from hmi_runtime.serving.batching import shape_size
from hmi_runtime.serving.loaded import LoadedAdapter, LoadedDomain
from hmi_runtime.serving.requests import PendingRequest, Text
from hmi_runtime.tables.lookup import lookup_many


@dataclass(frozen=True, slots=True, eq=False)
class BatchRow:
    """One row of a batch: row ``index`` of ``request``."""

    request: PendingRequest
    index: int
    adapter: LoadedAdapter
    text: Text


@dataclass(frozen=True, slots=True, eq=False)
class Representations:
    """Window outputs of the U different (Domain, text) pairs of a batch; T is at least the longest text.

    Rows with the same text and Domain share one.
    """

    outputs: Tensor  # (U, T, 3, D) float32, zero at padding
    mask: Tensor  # (U, T) bool
    domains: Sequence[LoadedDomain]
    domain_of: Tensor  # (U,) int64 into ``domains``
    hits: Sequence[int]  # windows of each text that were not computed
    sources: Tensor  # (U, T) int8: the ``LookupSource`` of each window
    ids: Tensor  # (U, T) int64: the tokens, on the host


@dataclass(frozen=True, slots=True, eq=False)
class StagedBatch:
    """A batch that can be computed: B rows over U representations (None if B is 0)."""

    rows: Sequence[BatchRow]
    representations: Representations | None
    representation_of: Tensor  # (B,) int64
    slots: Sequence[int]  # (B,)
    acquired: AcquiredSlots[AdapterWeights]
    failed: Sequence[tuple[BatchRow, HmiError]]  # rows whose adapter could not be written to a slot
    staging_seconds: float

    @property
    def tokens(self) -> int:
        """Tokens to compute, padding included."""
        return 0 if self.representations is None else len(self.rows) * self.representations.mask.shape[1]


def single(batch: StagedBatch, number: int) -> StagedBatch:
    """Return a batch of one row of ``batch``, without padding. The slots stay acquired by ``batch``."""
    shared = batch.representations
    if shared is None:
        raise IndexError(f"row {number} of an empty batch")
    row, place = batch.rows[number], int(batch.representation_of[number])
    span = slice(place, place + 1), slice(row.text.length)
    alone = Representations(
        outputs=shared.outputs[span],
        mask=shared.mask[span],
        domains=[shared.domains[int(shared.domain_of[place])]],
        domain_of=torch.zeros(1, dtype=torch.int64),
        hits=[shared.hits[place]],
        sources=shared.sources[span],
        ids=shared.ids[span],
    )
    return replace(
        batch,
        rows=[row],
        representations=alone,
        representation_of=torch.zeros(1, dtype=torch.int64),
        slots=[batch.slots[number]],
        failed=[],
        staging_seconds=batch.staging_seconds / len(batch.rows),
    )


def share_texts(rows: Sequence[BatchRow]) -> tuple[list[tuple[LoadedDomain, Text]], list[int]]:
    """Return the different (Domain, text) pairs, grouped by Domain, and the index of each row's pair."""
    pairs = {(row.adapter.domain, row.text): None for row in rows}
    order = {domain: number for number, domain in enumerate(dict.fromkeys(domain for domain, _ in pairs))}
    ordered = sorted(pairs, key=lambda pair: order[pair[0]])
    place = {pair: number for number, pair in enumerate(ordered)}
    return ordered, [place[row.adapter.domain, row.text] for row in rows]


def pad(texts: Iterable[Text], config: EncoderConfig) -> tuple[Tensor, Tensor]:
    """Return ids (U, T) int64 and mask (U, T) bool of texts padded to the ``shape_size`` of the longest."""
    encodings = [text.encoding.ids for text in texts]
    lengths = [len(ids) for ids in encodings]
    length = min(shape_size(max(lengths)), config.positions)
    ids = torch.tensor([[*ids, *[config.pad_id] * (length - len(ids))] for ids in encodings])
    return ids, torch.arange(length) < torch.tensor(lengths)[:, None]


def look_up(pairs: Sequence[tuple[LoadedDomain, Text]], config: EncoderConfig) -> Representations:
    """Look up every window of one or more (Domain, text) pairs."""
    ids, mask = pad((text for _, text in pairs), config)
    domains = list(dict.fromkeys(domain for domain, _ in pairs))
    domain_of = torch.tensor([domains.index(domain) for domain, _ in pairs])  # (U,)
    found = lookup_many([domain.lookup for domain in domains], domain_of, trigrams(ids, mask), mask)
    hits = found.row_hits().tolist()
    return Representations(found.outputs, mask, domains, domain_of, hits, found.sources, ids)
