"""ONNX Runtime as a peer of the runtime: one whole model in float32 or int8."""

import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn
from transformers import BertConfig

from hmi_bench.serving.systems import Batch, Classifier


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
