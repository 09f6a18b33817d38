"""The peers of the serving benchmark compute the same model."""

import numpy as np
import pytest
import torch
from transformers import BertConfig

from hmi_bench.serving.onnx import OnnxWhole
from hmi_bench.serving.openvino import OpenVinoWhole
from hmi_bench.serving.systems import Classifier, make_batch

TINY = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_openvino_answers_as_torch_does(precision: str) -> None:
    batch = make_batch([5, 9, 12], TINY.vocab_size, seed=1)
    torch.manual_seed(0)
    model = Classifier(TINY).eval()
    with torch.inference_mode():
        expected = model(batch.ids, batch.mask.long()).numpy()
    peer = OpenVinoWhole(TINY, precision=precision, threads=1)
    peer.prepare(batch)
    found = peer.serve(batch)
    bound = {"float32": 1e-4, "bfloat16": 0.03, "int8": 0.15}[precision]
    np.testing.assert_allclose(found, expected, atol=bound * np.abs(expected).max())


def test_openvino_and_onnx_runtime_compute_the_same_model() -> None:
    batch = make_batch([5, 9, 12], TINY.vocab_size, seed=2)
    answers = []
    for peer in (OpenVinoWhole(TINY, precision="float32", threads=1), OnnxWhole(TINY, int8=False, threads=1)):
        peer.prepare(batch)
        answers.append(peer.serve(batch))
    np.testing.assert_allclose(*answers, atol=1e-3)
