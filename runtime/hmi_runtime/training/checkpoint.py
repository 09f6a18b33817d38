"""Resuming a killed run: records of finished stages, and checkpoints inside a long stage.

Files are safetensors and JSON and are written atomically. All random numbers of training are drawn from
(seed, step), so the step number determines the batches and the random state, and a checkpoint contains
parameters, optimiser state and that number. A run that was killed and resumed gives the same bits as one that
was not, on the same number of threads.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hmi_api.durable_files import replace_durably, write_atomically
from hmi_api.errors import InvalidInput
from hmi_runtime.training.precision import FLOAT32, StepPrecision

_STEP, _NOTES, _PRECISION = "step", "notes", "precision"


class Stages:
    """The finished stages of the run that owns a work folder, each with a JSON record."""

    def __init__(self, folder: Path, run_digest: str) -> None:
        """Use ``folder`` for the run whose specification has ``run_digest``.

        Raises ``InvalidInput`` WorkDirInUse if it contains another run's work.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        owner = self.record("run")
        if owner is None:
            self.finish("run", {"digest": run_digest})
        elif owner["digest"] != run_digest:
            raise InvalidInput(
                "WorkDirInUse",
                f"{folder} contains another run's work; give an empty folder, or remove it.",
            )

    def record(self, stage: str) -> dict[str, Any] | None:
        """Return a finished stage's record; None if the stage is not finished."""
        path = self._path(stage)
        if not path.is_file():
            return None
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record

    def finish(self, stage: str, record: dict[str, object]) -> None:
        """Record that a stage is finished, so that it is not repeated."""
        write_atomically(self._path(stage), json.dumps(record, sort_keys=True).encode())

    def fresh_folder(self, name: str) -> Path:
        """Return an empty folder; delete what an unfinished attempt left in it."""
        path = self.folder / name
        if path.exists():
            shutil.rmtree(path)
        path.mkdir()
        return path

    def _path(self, stage: str) -> Path:
        return self.folder / f"{stage}.json"


@dataclass
class Checkpoint:
    """The checkpoint of a training loop: trained parameters of ``module`` and state of ``optimizer``.

    ``every_seconds`` is the least time between two saves; 0 saves after every step. ``precision`` is that of
    the steps; ``restore`` can change it to that of the saved ones.
    """

    path: Path
    module: nn.Module
    optimizer: torch.optim.Optimizer
    every_seconds: float = 30.0
    clock: Callable[[], float] = time.monotonic
    precision: StepPrecision = FLOAT32
    _saved_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._saved_at = self.clock()

    def restore(self) -> tuple[int, dict[str, float]]:
        """Load the saved state; return its step and notes, or (0, {}) if nothing was saved."""
        saved = load_tensors(self.path)
        if saved is None:
            return 0, {}
        tensors, metadata = saved
        load_parameters(self.module, tensors, prefix="module.")
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        # Checkpoints without the entry come from versions that trained in float32 only.
        self.precision = self.precision.resumed(metadata.get(_PRECISION, FLOAT32.name))
        notes: dict[str, float] = json.loads(metadata[_NOTES])
        return int(metadata[_STEP]), notes

    def save_when_due(self, step: int, notes: dict[str, float]) -> None:
        """Save unless the last save was less than ``every_seconds`` ago."""
        if self.clock() - self._saved_at >= self.every_seconds:
            self.save(step, notes)

    def save(self, step: int, notes: dict[str, float]) -> None:
        """Replace the checkpoint atomically."""
        tensors: dict[str, Tensor] = {
            f"module.{name}": parameter for name, parameter in trained_parameters(self.module).items()
        }
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
        metadata = {_STEP: str(step), _NOTES: json.dumps(notes), _PRECISION: self.precision.name}
        save_tensors(self.path, tensors, metadata)
        self._saved_at = self.clock()


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def load_parameters(module: nn.Module, tensors: Mapping[str, Tensor], *, prefix: str = "") -> None:
    """Copy ``tensors``, named with ``prefix``, into the trained parameters of ``module``."""
    with torch.no_grad():
        for name, parameter in trained_parameters(module).items():
            parameter.copy_(tensors[prefix + name])


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically."""
    temporary = path.with_suffix(".part")
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary, metadata=metadata
    )
    replace_durably(temporary, path)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Return the tensors and metadata of a safetensors file; None if there is no file."""
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 (no mapping)


def derived_seed(seed: int, *places: int) -> int:
    """Return a seed of its own for one place in a run, such as an epoch or a step."""
    value = seed & 0xFFFFFFFF
    for place in places:
        value = (value * 6364136223846793005 + place + 1442695040888963407) & (2**63 - 1)
        value ^= value >> 29
    return value


def generator(seed: int, *places: int) -> torch.Generator:
    """Return a random generator for one place in a run."""
    return torch.Generator().manual_seed(derived_seed(seed, *places))
