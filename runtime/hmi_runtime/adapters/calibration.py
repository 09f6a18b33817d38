"""What quantisation looks at to learn which channels are large: the base model's own hidden states."""

import torch
from torch import Tensor

from hmi_runtime.base import Encoder

_ROWS, _LENGTH = 16, 32


def calibration_sample(encoder: Encoder, split: int, seed: int = 0) -> Tensor:
    """Return hidden states (16, 32, D) at the split, of words drawn at random from the vocabulary.

    Channels that are large are so for nearly every word, so no text is needed, least of all a tenant's.
    """
    config = encoder.config
    random = torch.Generator().manual_seed(seed)
    length = min(_LENGTH, config.positions)
    ids = torch.randint(config.vocab_size, (_ROWS, length), generator=random)  # (B, T)
    ids[:, 0], ids[:, -1] = config.cls_id, config.sep_id
    ids = ids.to(encoder.word.weight.device)
    with torch.inference_mode():
        return encoder.hidden_states(ids, torch.ones_like(ids, dtype=torch.bool))[split]
