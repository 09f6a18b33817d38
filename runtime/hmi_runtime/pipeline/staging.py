"""Staging: from groups of rows to the tensors of one batch, tables looked up and slots leased.

Everything here depends on the texts and adapters alone, so it is done while the batch before computes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hmi_api.errors import HmiError
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.cache import Lease
from hmi_runtime.model import trigrams
from hmi_runtime.pipeline.domains import ServedDomain
from hmi_runtime.pipeline.rows import PendingRequest, Route, Text
from hmi_runtime.plot import lookup_many


@dataclass(frozen=True, slots=True, eq=False)
class BatchRow:
    """One row of a batch: which row of which request, about which text."""

    request: PendingRequest
    index: int
    route: Route
    text: Text


@dataclass(frozen=True, slots=True, eq=False)
class Representations:
    """What a batch's different texts look like after the lookup: U of them, T tokens the longest.

    Rows that ask about the same text in the same domain share one.
    """

    parts: Tensor  # (U, T, 3, D) float32, zero at padding
    mask: Tensor  # (U, T) bool
    domains: Sequence[ServedDomain]
    domain_of: Tensor  # (U,) int64 into ``domains``
    hits: Sequence[int]  # of each text, how many windows were not computed
    levels: Tensor  # (U, T) int8, where each window came from (``plot.Level``)


@dataclass(frozen=True, slots=True, eq=False)
class StagedBatch:
    """A batch that is ready to compute: B rows over U representations (None where B is 0)."""

    rows: Sequence[BatchRow]
    representations: Representations | None
    representation_of: Tensor  # (B,) int64
    slots: Sequence[int]  # each row's, B of them
    lease: Lease[AdapterWeights]
    refused: Sequence[tuple[BatchRow, HmiError]]  # rows whose adapter could not be brought to a slot


def single(batch: StagedBatch, number: int) -> StagedBatch:
    """Return the batch of one row of ``batch``, without its padding; the lease stays the whole batch's."""
    shared = batch.representations
    if shared is None:
        raise IndexError(f"row {number} of an empty batch")
    row, place = batch.rows[number], int(batch.representation_of[number])
    span = slice(place, place + 1), slice(row.text.length)
    alone = Representations(
        parts=shared.parts[span],
        mask=shared.mask[span],
        domains=[shared.domains[int(shared.domain_of[place])]],
        domain_of=torch.zeros(1, dtype=torch.int64),
        hits=[shared.hits[place]],
        levels=shared.levels[span],
    )
    return replace(
        batch,
        rows=[row],
        representations=alone,
        representation_of=torch.zeros(1, dtype=torch.int64),
        slots=[batch.slots[number]],
        refused=[],
    )


def share_texts(rows: Sequence[BatchRow]) -> tuple[list[tuple[ServedDomain, Text]], list[int]]:
    """Return the different (domain, text) pairs, each domain's together, and each row's place among them."""
    pairs = {(row.route.domain, row.text): None for row in rows}
    order = {domain: number for number, domain in enumerate(dict.fromkeys(domain for domain, _ in pairs))}
    ordered = sorted(pairs, key=lambda pair: order[pair[0]])
    place = {pair: number for number, pair in enumerate(ordered)}
    return ordered, [place[row.route.domain, row.text] for row in rows]


def pad(texts: Iterable[Text], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids (U, T) int64 and mask (U, T) bool of texts padded to the longest."""
    encodings = [text.encoding.ids for text in texts]
    longest = max(len(ids) for ids in encodings)
    ids = torch.full((len(encodings), longest), pad_id)
    for row, encoding in zip(ids, encodings, strict=True):
        row[: len(encoding)] = torch.tensor(encoding)
    lengths = torch.tensor([len(encoding) for encoding in encodings], dtype=torch.int64)
    return ids, torch.arange(longest) < lengths[:, None]


def look_up(pairs: Sequence[tuple[ServedDomain, Text]], pad_id: int) -> Representations:
    """Look up every window of the (domain, text) pairs, of which there is at least one."""
    ids, mask = pad((text for _, text in pairs), pad_id)
    domains = list(dict.fromkeys(domain for domain, _ in pairs))
    domain_of = torch.tensor([domains.index(domain) for domain, _ in pairs])  # (U,)
    found = lookup_many([domain.lookup for domain in domains], domain_of, trigrams(ids, mask), mask)
    return Representations(found.parts, mask, domains, domain_of, found.row_hits().tolist(), found.levels)
