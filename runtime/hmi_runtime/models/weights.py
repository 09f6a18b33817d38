"""Reading a checkpoint's safetensors file into the canonical encoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hmi_api.errors import InvalidInput
from hmi_runtime.models.architecture import EncoderConfig, Family
from hmi_runtime.models.encoder import Encoder
from hmi_runtime.models.families import FAMILIES

WEIGHTS_FILE = "model.safetensors"
_LFS_START = b"version https://git-lfs.github.com/spec/"
LFS_POINTER_ADVICE = (
    "is a git-lfs pointer, not the file itself; run `git lfs pull` where it comes from and provide it again"
)
"""The end of an error message, after the file's name."""


def check_not_lfs_pointer(path: Path) -> None:
    """Raise ``InvalidInput`` BaseModelIncomplete when a weights file is a git-lfs pointer."""
    if is_lfs_pointer(path):
        raise InvalidInput("BaseModelIncomplete", f"{path.name} of the base model {LFS_POINTER_ADVICE}.")


def read_encoder(folder: Path, config: EncoderConfig) -> Encoder:
    """Return a fresh float32 encoder, in evaluation mode and frozen, with the folder's weights.

    Raises ``InvalidInput`` BaseModelIncomplete when the file is damaged, or a tensor is missing or has
    another shape, and BaseModelNotFinite when a weight is infinite or not a number.
    """
    check_not_lfs_pointer(folder / WEIGHTS_FILE)
    try:
        return _read(folder, config, FAMILIES[config.family])
    except SafetensorError as error:
        raise InvalidInput(
            "BaseModelIncomplete",
            f"{WEIGHTS_FILE} of the base model cannot be read ({error}); fetch it again, it may be cut off.",
        ) from error


def _read(folder: Path, config: EncoderConfig, family: Family) -> Encoder:
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as tensors:
        file = _File(tensors, frozenset(tensors.keys()), family)
        with torch.device("meta"):  # allocate nothing before the file's sizes match config.json
            shapes = Encoder(config, pooler=file.has_pooler).state_dict()
        for name, parameter in shapes.items():
            file.check(name, parameter)
        encoder = Encoder(config, pooler=file.has_pooler)
        state = {name: file.tensor(name, parameter) for name, parameter in encoder.state_dict().items()}
    encoder.load_state_dict(state)
    broken = next((name for name, tensor in state.items() if not torch.isfinite(tensor).all()), None)
    if broken is not None:
        raise InvalidInput(
            "BaseModelNotFinite",
            f"{broken} in {WEIGHTS_FILE} of the base model has values that are infinite or not numbers; "
            "use a checkpoint without them.",
        )
    encoder.requires_grad_(False)
    return encoder.eval()


@dataclass(frozen=True)
class _File:
    """A family's weights file, read by canonical parameter names."""

    tensors: Any
    names: frozenset[str]
    family: Family

    @property
    def prefix(self) -> str:
        """Prefix of every name: a task model's file has one, a plain encoder's has none."""
        prefix = self.family.prefix
        return prefix if any(name.startswith(prefix) for name in self.names) else ""

    @property
    def has_pooler(self) -> bool:
        """Whether the file has the family's pooler."""
        pooler = self.family.pooler
        return pooler is not None and f"{self.prefix}{pooler}.weight" in self.names

    def tensor(self, name: str, parameter: Tensor) -> Tensor:
        """Return the tensor for the encoder's ``parameter`` of that name, which was checked, in float32."""
        module, _, kind = name.rpartition(".")
        path, block, blocks = self._path(module)
        stored = f"{self.prefix}{path}.{kind}"
        if stored not in self.names:  # a bias that the family's files may lack
            return torch.zeros_like(parameter)
        found: Tensor = self.tensors.get_tensor(stored).to(torch.float32)
        if module == "position":
            # RoBERTa never uses its first position rows: the canonical ones start at the first used.
            return found[-len(parameter) :].clone()
        return found if blocks == 1 else found.chunk(blocks)[block].clone()

    def check(self, name: str, parameter: Tensor) -> None:
        """Raise ``InvalidInput`` BaseModelIncomplete unless the file has the tensor in the right shape."""
        module, _, kind = name.rpartition(".")
        path, _, blocks = self._path(module)
        stored = f"{self.prefix}{path}.{kind}"
        if stored not in self.names:
            if kind == "bias" and self.family.may_lack_biases:
                return
            raise InvalidInput(
                "BaseModelIncomplete",
                f"{WEIGHTS_FILE} has no tensor {stored!r}; is this a {self.family.name} checkpoint?",
            )
        found = tuple(self.tensors.get_slice(stored).get_shape())
        wanted = (parameter.shape[0] * blocks, *parameter.shape[1:])
        if found != wanted and not (module == "position" and found[1:] == wanted[1:] and found > wanted):
            raise InvalidInput(
                "BaseModelIncomplete",
                f"{WEIGHTS_FILE} does not fit config.json: tensor {stored!r} has shape {list(found)}, not "
                f"{list(wanted)}.",
            )

    def _path(self, module: str) -> tuple[str, int, int]:
        """Return a module's path in the file, its block of rows there, and the number of blocks."""
        family = self.family
        if module == "pooler":
            return f"{family.pooler}", 0, 1
        if not module.startswith("layers."):
            return family.embeddings[module], 0, 1
        _, layer, name = module.split(".")
        under = family.modules[name]
        fused = family.fused.get(under, (name,))
        return f"{family.layer.format(layer)}.{under}", fused.index(name), len(fused)


def is_lfs_pointer(path: Path) -> bool:
    """Return whether ``path``, which must exist, is a git-lfs pointer, as a clone without git-lfs has."""
    with path.open("rb") as file:
        return file.read(len(_LFS_START)) == _LFS_START
