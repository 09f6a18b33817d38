"""The systems that HMI's own runtime (``hmi``) is compared with: PEFT, model swapping and ONNX Runtime."""

import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from hmi_runtime.adapters.heads import pool_states


@dataclass(frozen=True)
class Batch:
    """Rows of several tenants; row i belongs to tenant i.

    ids (B, T) int64 and mask (B, T) bool, padded to the longest row.
    """

    ids: Tensor
    mask: Tensor

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
            warnings.simplefilter("ignore")  # peft warns about its own defaults
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
        pooled = pool_states("first_and_mean", hidden, batch.mask)  # (B, 2D)
        return [self._heads[row](pooled[row]) for row in range(len(batch))]


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
        """Do nothing, since the models are in memory."""

    def serve(self, batch: Batch) -> list[Tensor]:
        """Return each row's logits, tenant after tenant."""
        logits = []
        for row, length in enumerate(batch.mask.sum(1).tolist()):
            self._bring_in(row % len(self._stored))
            ids, mask = batch.ids[row : row + 1, :length], batch.mask[row : row + 1, :length]
            hidden = self._model(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # (1, T, D)
            logits.append(self._heads[row % len(self._heads)](pool_states("first_and_mean", hidden, mask))[0])
        return logits

    def _bring_in(self, tenant: int) -> None:
        for parameter, stored in zip(self._parameters, self._stored[tenant], strict=True):
            if self._resident:
                parameter.data = stored
            else:
                parameter.data.copy_(stored)


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


class OnnxWhole:
    """One model in ONNX Runtime, float32 or dynamically quantised to int8."""

    def __init__(self, config: BertConfig, *, int8: bool, threads: int) -> None:
        self.name = f"ONNX Runtime, one whole model, {'int8' if int8 else 'float32'}"
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            path = _export(Classifier(config).eval(), Path(folder) / "model.onnx")
            if int8:
                quantised = Path(folder) / "int8.onnx"
                # It warns about every product that stays in float, which are those without weights.
                logging.disable(logging.WARNING)
                quantize_dynamic(path, quantised, weight_type=QuantType.QInt8, per_channel=True)
                logging.disable(logging.NOTSET)
                path = quantised
            self.bytes_a_tenant = sum(file.stat().st_size for file in path.parent.glob(path.name + "*"))
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def prepare(self, batch: Batch) -> None:
        """Make the inputs as ONNX Runtime takes them."""
        self._inputs = {"ids": batch.ids.numpy(), "mask": batch.mask.long().numpy()}

    def serve(self, batch: Batch) -> np.ndarray:
        """Return logits (B, N), the same model for every row."""
        (logits,) = self._session.run(None, self._inputs)
        return np.asarray(logits)


def _export(model: nn.Module, path: Path) -> Path:
    ids = torch.randint(1000, 2000, (2, 16))
    dynamic = {"ids": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        torch.onnx.export(
            model, (ids, torch.ones_like(ids)), path, input_names=["ids", "mask"],
            output_names=["logits"], dynamic_axes=dynamic, dynamo=False, opset_version=17,
        )  # fmt: skip
    return path
