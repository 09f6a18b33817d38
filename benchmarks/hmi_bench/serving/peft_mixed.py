"""PEFT: one frozen whole model, a LoRA for every row by ``adapter_names`` (its mixed batches)."""

import logging
import warnings

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import BertConfig, BertModel

from hmi_bench.serving.contender import Batch

_TARGETS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


class PeftMixed:
    """Whole-depth or upper-half LoRA on all six matrices, ``adapters`` of them loaded."""

    def __init__(self, config: BertConfig, rank: int, adapters: int, *, first_layer: int = 0) -> None:
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
            warnings.simplefilter("ignore")  # peft's own notes on its defaults are not ours to mend
            model = get_peft_model(BertModel(config, add_pooling_layer=False).eval(), lora, adapter_name="t0")
            for index in range(1, adapters):
                model.add_adapter(f"t{index}", lora)
        self._model = model.eval()
        self._heads = [torch.nn.Linear(2 * config.hidden_size, 2 + index % 14) for index in range(adapters)]
        lora_weights = sum(p.numel() for n, p in model.named_parameters() if ".t0." in n)
        self.bytes_a_tenant = 4 * (lora_weights + sum(p.numel() for p in self._heads[0].parameters()))

    def prepare(self, batch: Batch) -> None:
        """Name each row's adapter."""
        self._names = [f"t{row}" for row in range(len(batch))]

    def serve(self, batch: Batch) -> list[Tensor]:
        """Return each row's logits."""
        hidden = self._model(
            input_ids=batch.ids, attention_mask=batch.mask.long(), adapter_names=self._names
        ).last_hidden_state  # (B, T, D)
        pooled = pool(hidden, batch.mask)  # (B, 2D)
        return [self._heads[row](pooled[row]) for row in range(len(batch))]


def pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return first token and mean side by side (B, 2D) of ``hidden`` (B, T, D)."""
    weight = mask[:, :, None].to(hidden.dtype)  # (B, T, 1)
    return torch.cat([hidden[:, 0], (hidden * weight).sum(1) / weight.sum(1)], dim=1)
