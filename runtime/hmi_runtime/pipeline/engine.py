"""One base model at one split: its frozen upper layers, its adapter slots, and batches through both."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hmi_api.errors import Damaged
from hmi_api.internal.inference import RowResult
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.adapters.batched import UpperExecutor
from hmi_runtime.adapters.batched_heads import run_heads
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.base import BaseModel, Encoder
from hmi_runtime.cache import SlotTier
from hmi_runtime.pipeline.bridge import finish_by_slot, finish_each
from hmi_runtime.pipeline.rows import row_error
from hmi_runtime.pipeline.staging import BatchRow, StagedBatch, look_up, share_texts
from hmi_runtime.pipeline.tokens import label_words


@dataclass(frozen=True)
class EngineKey:
    """What may share a batch: rows on one base model, split at one layer."""

    base_digest: str
    split: int


@dataclass(frozen=True, eq=False)
class Engine:
    """Computes batches. ``stage`` is called by one thread and ``compute`` by another, at the same time."""

    key: EngineKey
    base: BaseModel
    encoder: Encoder  # for its word embeddings, which all domains share
    executor: UpperExecutor
    slots: SlotTier[AdapterWeights]
    slot_bytes: int
    device: torch.device

    def stage(self, rows: Sequence[BatchRow]) -> StagedBatch:
        """Lease slots, look up tables, pad. The caller holds every row's adapter and owes ``finish``."""
        lease = self.slots.lease(list(dict.fromkeys(row.route.adapter for row in rows)))
        try:
            good = [row for row in rows if row.route.adapter in lease.slots]
            pairs, places = share_texts(good)
            return StagedBatch(
                rows=good,
                representations=look_up(pairs, self.base.config.pad_id) if pairs else None,
                representation_of=torch.tensor(places, dtype=torch.int64),
                slots=[lease.slots[row.route.adapter] for row in good],
                lease=lease,
                refused=[
                    (row, lease.failed[row.route.adapter])
                    for row in rows
                    if row.route.adapter in lease.failed
                ],
            )
        except BaseException:
            self.slots.end(lease)
            raise

    def compute(self, batch: StagedBatch) -> list[RowResult]:
        """Return one result for each of ``batch.rows``, in order."""
        shared = batch.representations
        if shared is None:
            return []
        parts, mask = shared.parts.to(self.device), shared.mask.to(self.device)
        layers = [domain.layers for domain in shared.domains]
        # A GPU wants one product for all; a CPU loses more by gathering weights for every row than it gains.
        finish = finish_each if self.device.type == "cpu" else finish_by_slot
        hidden = finish(layers, shared.domain_of.to(self.device), parts, mask)  # (U, T, D)
        place = batch.representation_of.to(self.device)  # (B,)
        hidden, mask = hidden[place], mask[place]  # (B, T, D), (B, T)
        hidden = self.executor.run(hidden, mask, batch.slots)  # (B, T, D)
        logits = run_heads(self.executor.pool, hidden, mask, batch.slots)
        hits = [shared.hits[place] for place in batch.representation_of.tolist()]
        return [
            row_result(row, row_logits, row_hits)
            for row, row_logits, row_hits in zip(batch.rows, logits, hits, strict=True)
        ]

    def finish(self, batch: StagedBatch) -> None:
        """Give back what the batch leased."""
        self.slots.end(batch.lease)


def row_result(row: BatchRow, logits: Tensor, hits: int) -> RowResult:
    """Turn one row's logits, (labels,) or (T, labels), into its answer.

    Logits that are not finite are an error, AdapterOutputInvalid. They are looked at before the softmax,
    which makes probabilities of some of them.
    """
    route = row.route
    logits = logits.float().cpu()
    if not torch.isfinite(logits).all():
        error = Damaged(
            "AdapterOutputInvalid", f"{route.adapter} gives numbers that are not finite; retrain it."
        )
        return RowResult(error=row_error(error))
    probabilities = logits.softmax(dim=-1)
    tokens, scores = [], []
    if route.task is TaskType.TOKEN_CLASSIFICATION:
        tokens = label_words(row.text, probabilities, route.labels)
    else:
        scores = probabilities.tolist()
    return RowResult(
        version=route.adapter.version,
        labels=list(route.labels),
        scores=scores,
        tokens=tokens,
        tag_scheme=route.tag_scheme,
        prompt_tokens=row.text.length,
        table_hits=hits,
        table_lookups=row.text.length,
    )
