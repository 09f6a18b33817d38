"""What the systems of the serving benchmark have in common, and model swapping, which needs no library."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from hmi_runtime.adapters.heads import pool_states

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """Rows of several tenants; row i belongs to tenant i.

    ids (B, T) int64 and mask (B, T) bool, padded to the longest row.
    """

    ids: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on ``device``."""
        return Batch(self.ids.to(device), self.mask.to(device))

    def __len__(self) -> int:
        return self.ids.shape[0]


class ServingSystem(Protocol):
    """One way to serve a batch in which every row belongs to another tenant."""

    name: str
    bytes_a_tenant: int
    """Bytes of memory that one more tenant takes."""

    def prepare(self, batch: Batch) -> None:
        """Prepare what is not part of serving a request, such as buffers."""

    def serve(self, batch: Batch) -> object:
        """Answer every row; return what a caller would read."""


def make_batch(lengths: Sequence[int], vocab_size: int, seed: int) -> Batch:
    """Return a batch of random word ids with rows of the given lengths."""
    random = torch.Generator().manual_seed(seed)
    length = max(lengths)
    ids = torch.randint(1000, vocab_size, (len(lengths), length), generator=random)  # (B, T)
    mask = torch.arange(length)[None] < torch.tensor(lengths)[:, None]  # (B, T)
    return Batch(ids.masked_fill(~mask, 0), mask)


class StoredModels:
    """The fine-tuned weights of ``count`` tenants, which ``Swapping`` serves from. Their values are equal.

    They rest on the device if ``resident``, else in host memory, pinned where the device is a GPU.
    """

    def __init__(
        self,
        config: BertConfig,
        count: int,
        *,
        resident: bool = False,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        torch.manual_seed(0)
        self.config, self.device, self.dtype = config, device, dtype
        model = BertModel(config, add_pooling_layer=False)
        rest = device if resident else CPU
        first = [p.detach().to(rest, dtype) for p in model.parameters()]
        pinned = rest.type == "cpu" and device.type == "cuda"
        # Distinct memory for each tenant, as distinct models have; the values do not change the time.
        self.tenants = [[p.pin_memory() if pinned else p.clone() for p in first] for _ in range(count)]


class Swapping:
    """``resident=False`` copies each tenant's weights in; ``resident=True`` only runs its model."""

    def __init__(self, stored: StoredModels, *, resident: bool) -> None:
        self.name = "one model a tenant, all resident" if resident else "model swapping"
        config, device, dtype = stored.config, stored.device, stored.dtype
        self._resident = resident
        self._device = device
        self._stored = stored.tenants
        self._model = BertModel(config, add_pooling_layer=False).eval().to(device, dtype)
        self._parameters = list(self._model.parameters())
        self._heads = [
            nn.Linear(2 * config.hidden_size, 2 + index % 14).to(device, dtype)
            for index in range(len(self._stored))
        ]
        self.bytes_a_tenant = sum(p.numel() * p.element_size() for p in self._parameters)

    def prepare(self, batch: Batch) -> None:
        """Do nothing, since the models are in memory."""

    def serve(self, batch: Batch) -> list[Tensor]:
        """Return each row's logits, tenant after tenant."""
        logits = []
        lengths = batch.mask.sum(1).tolist()
        batch = batch.to(self._device)
        for row, length in enumerate(lengths):
            self._bring_in(row % len(self._stored))
            ids, mask = batch.ids[row : row + 1, :length], batch.mask[row : row + 1, :length]
            hidden = self._model(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # (1, T, D)
            logits.append(self._heads[row % len(self._heads)](pool_states("first_and_mean", hidden, mask))[0])
        return [row.cpu() for row in logits]

    def _bring_in(self, tenant: int) -> None:
        for parameter, stored in zip(self._parameters, self._stored[tenant], strict=True):
            if self._resident:
                parameter.data = stored
            else:
                parameter.data.copy_(stored, non_blocking=True)


class Classifier(nn.Module):
    """A whole encoder and a head, as one graph."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(2 * config.hidden_size, 8)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        logits: Tensor = self.head(pool_states("first_and_mean", hidden, mask))
        return logits
