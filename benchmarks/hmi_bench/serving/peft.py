"""PEFT as a peer of the runtime: mixed batches by ``adapter_names``."""

import logging
import warnings

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from hmi_bench.serving.systems import CPU, Batch
from hmi_runtime.adapters.heads import pool_states

_TARGETS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


class PeftMixed:
    """Whole-depth or upper-half LoRA on all six matrices, ``adapters`` of them loaded."""

    def __init__(
        self,
        config: BertConfig,
        rank: int,
        adapters: int,
        *,
        first_layer: int = 0,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name = "PEFT mixed batch" if first_layer == 0 else "PEFT mixed batch, upper half only"
        torch.manual_seed(0)
        logging.getLogger("transformers").setLevel(logging.ERROR)
        lora = LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=_TARGETS,
            init_lora_weights=False,
            layers_to_transform=list(range(first_layer, config.num_hidden_layers)),
            layers_pattern="layer",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns about its own defaults
            model = get_peft_model(BertModel(config, add_pooling_layer=False).eval(), lora, adapter_name="t0")
            for index in range(1, adapters):
                model.add_adapter(f"t{index}", lora)
        self._device = device
        self._model = model.eval().to(device, dtype)
        self._heads = [
            nn.Linear(2 * config.hidden_size, 2 + index % 14).to(device, dtype) for index in range(adapters)
        ]
        own = [p for n, p in model.named_parameters() if ".t0." in n] + list(self._heads[0].parameters())
        self.bytes_a_tenant = sum(p.numel() * p.element_size() for p in own)

    def prepare(self, batch: Batch) -> None:
        """Name each row's adapter."""
        self._names = [f"t{row}" for row in range(len(batch))]

    def serve(self, batch: Batch) -> list[Tensor]:
        """Return each row's logits."""
        batch = batch.to(self._device)
        hidden = self._model(
            input_ids=batch.ids, attention_mask=batch.mask.long(), adapter_names=self._names
        ).last_hidden_state  # (B, T, D)
        pooled = pool_states("first_and_mean", hidden, batch.mask)  # (B, 2D)
        return [self._heads[row](pooled[row]).cpu() for row in range(len(batch))]
