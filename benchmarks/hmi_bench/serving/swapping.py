"""Model swapping: a whole fine-tuned model for each tenant, brought in for its row.

The models rest in host memory as flat state and are copied into the one resident model, which is what a
GPU server does between its host and its device. A second contender leaves even the copy out: every model
stays resident, which is the kindest case there is and needs all their memory.
"""

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from hmi_bench.serving.contender import Batch
from hmi_bench.serving.peft_mixed import pool


class Swapping:
    """``resident=False`` copies each tenant's weights in; ``resident=True`` only runs its model."""

    def __init__(self, config: BertConfig, models: int, *, resident: bool) -> None:
        self.name = "one model a tenant, all resident" if resident else "model swapping"
        torch.manual_seed(0)
        self._resident = resident
        self._model = BertModel(config, add_pooling_layer=False).eval()
        self._parameters = list(self._model.parameters())
        # Distinct memory for each tenant, as distinct models have; their values do not change the time.
        self._stored = [[p.detach().clone() for p in self._parameters] for _ in range(models)]
        self._heads = [torch.nn.Linear(2 * config.hidden_size, 2 + index % 14) for index in range(models)]
        self.bytes_a_tenant = sum(p.numel() * p.element_size() for p in self._parameters)

    def prepare(self, batch: Batch) -> None:
        """Nothing: the models are in memory already."""

    def serve(self, batch: Batch) -> list[Tensor]:
        """Return each row's logits, tenant after tenant."""
        logits = []
        for row, length in enumerate(batch.mask.sum(1).tolist()):
            self._bring_in(row % len(self._stored))
            ids, mask = batch.ids[row : row + 1, :length], batch.mask[row : row + 1, :length]
            hidden = self._model(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # (1, T, D)
            logits.append(self._heads[row % len(self._heads)](pool(hidden, mask))[0])
        return logits

    def _bring_in(self, tenant: int) -> None:
        for parameter, stored in zip(self._parameters, self._stored[tenant], strict=True):
            if self._resident:
                parameter.data = stored
            else:
                parameter.data.copy_(stored)
