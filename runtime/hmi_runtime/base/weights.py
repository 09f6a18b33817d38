"""Reading a checkpoint's safetensors into the canonical encoder."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hmi_api.errors import InvalidInput
from hmi_runtime.base.architecture import MATRICES, NORMS, Encoder, EncoderConfig
from hmi_runtime.base.families import FAMILIES, Family

WEIGHTS_FILE = "model.safetensors"


def read_encoder(folder: Path, config: EncoderConfig) -> Encoder:
    """Return a fresh float32 encoder, in evaluation mode and frozen, with the folder's weights.

    Raises ``InvalidInput`` BaseModelIncomplete when the file is damaged, or a tensor is missing or has
    another shape.
    """
    try:
        return _read(folder, config, FAMILIES[config.family])
    except SafetensorError as error:
        raise InvalidInput(
            "BaseModelIncomplete",
            f"{WEIGHTS_FILE} of the base model cannot be read ({error}); fetch it again, it may be cut off.",
        ) from error


def _read(folder: Path, config: EncoderConfig, family: Family) -> Encoder:
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as tensors:
        names = set(tensors.keys())
        prefix = family.prefix if any(name.startswith(family.prefix) for name in names) else ""
        pooler = family.pooler is not None and f"{prefix}{family.pooler}.weight" in names
        state: dict[str, Tensor] = {}
        for ours, theirs in _tensor_names(family, config, pooler=pooler).items():
            if prefix + theirs not in names:
                raise InvalidInput(
                    "BaseModelIncomplete",
                    f"{WEIGHTS_FILE} has no tensor {prefix + theirs!r}; is this a {family.name} checkpoint?",
                )
            state[ours] = tensors.get_tensor(prefix + theirs).to(torch.float32)
    # RoBERTa's first position rows are never used by a token: ours start at the first that is.
    state["position.weight"] = state["position.weight"][-config.positions :].clone()
    encoder = Encoder(config, pooler=pooler)
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise InvalidInput(
            "BaseModelIncomplete", f"{WEIGHTS_FILE} does not fit config.json: {error}"
        ) from error
    encoder.requires_grad_(False)
    return encoder.eval()


def _tensor_names(family: Family, config: EncoderConfig, *, pooler: bool) -> dict[str, str]:
    """Return canonical parameter name -> checkpoint name without its prefix."""
    pairs: dict[str, str] = {}
    for module, path in family.embeddings.items():
        if module == "segment" and config.segments == 0:
            continue
        pairs[f"{module}.weight"] = f"{path}.weight"
        if module == "embedding_norm":
            pairs[f"{module}.bias"] = f"{path}.bias"
    for index in range(config.layers):
        for module in (*MATRICES, *NORMS):
            for kind in ("weight", "bias"):
                path = f"{family.layer.format(index)}.{family.modules[module]}.{kind}"
                pairs[f"layers.{index}.{module}.{kind}"] = path
    if pooler:
        pairs["pooler.weight"] = f"{family.pooler}.weight"
        pairs["pooler.bias"] = f"{family.pooler}.bias"
    return pairs
