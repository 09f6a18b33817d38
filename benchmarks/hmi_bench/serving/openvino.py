"""OpenVINO as a peer of the runtime: one whole model in float32, bfloat16, or int8 quantised by NNCF."""

import logging
import warnings
from typing import Literal

import nncf
import numpy as np
import openvino
import torch
from torch import Tensor
from transformers import BertConfig

from hmi_bench.serving.systems import Batch, Classifier

_CALIBRATION_BATCHES = 8
_Inputs = dict[str, Tensor]


class OpenVinoWhole:
    """One model for all rows, compiled for the CPU.

    In int8, NNCF quantises weights and activations with static scales; what it leaves in floating point runs
    in bfloat16 where the CPU has it, OpenVINO's default.
    """

    def __init__(
        self, config: BertConfig, *, precision: Literal["float32", "bfloat16", "int8"], threads: int
    ) -> None:
        made_by = "int8 by NNCF" if precision == "int8" else precision
        self.name = f"OpenVINO, one whole model, {made_by}"
        torch.manual_seed(0)
        classifier = Classifier(config).eval()
        width = {"float32": 4, "bfloat16": 2, "int8": 1}[precision]
        self.bytes_a_tenant = width * sum(p.numel() for p in classifier.parameters())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns about transformers' own code
            model = openvino.convert_model(
                classifier, example_input=_inputs(config, rows=2, length=16, seed=0)
            )
        options: dict[str, object] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        if precision == "int8":
            model = _quantise(model, config)
        else:
            options["INFERENCE_PRECISION_HINT"] = {"float32": "f32", "bfloat16": "bf16"}[precision]
        self._compiled = openvino.Core().compile_model(model, "CPU", options)

    def prepare(self, batch: Batch) -> None:
        """Make the inputs as OpenVINO takes them."""
        self._inputs = {"ids": batch.ids.numpy(), "mask": batch.mask.long().numpy()}

    def serve(self, batch: Batch) -> np.ndarray:
        """Return logits (B, N), the same model for every row."""
        return np.asarray(self._compiled(self._inputs)[0])


def _quantise(model: openvino.Model, config: BertConfig) -> openvino.Model:
    """Return ``model`` with static int8 quantisation, calibrated on random words."""
    nncf.set_log_level(logging.ERROR)
    samples = [_inputs(config, rows=4, length=40, seed=seed) for seed in range(_CALIBRATION_BATCHES)]
    arrays = [{name: tensor.numpy() for name, tensor in sample.items()} for sample in samples]
    return nncf.quantize(
        model, nncf.Dataset(arrays), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(arrays)
    )


def _inputs(config: BertConfig, *, rows: int, length: int, seed: int) -> _Inputs:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(1000, config.vocab_size, (rows, length), generator=random)  # (B, T)
    return {"ids": ids, "mask": torch.ones_like(ids)}
