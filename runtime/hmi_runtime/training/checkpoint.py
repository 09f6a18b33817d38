"""What makes a killed run go on: finished stages, and checkpoints inside a long one.

Everything is safetensors and JSON, and every file appears whole or not at all. All chance in training is
drawn from (seed, step), so a step number stands for the order of rows and the random state alike, and a
checkpoint is parameters, optimiser state and that number. A run that was killed and resumed gives the same
bits as one that was not, on the same number of threads.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hmi_api.errors import InvalidInput

_STEP, _NOTES = "step", "notes"


class Stages:
    """The finished stages of the run that owns a work folder, each with a JSON record."""

    def __init__(self, folder: Path, run_digest: str) -> None:
        """Take ``folder`` for the run whose specification has ``run_digest``.

        Raises ``InvalidInput`` WorkDirInUse when it holds another run's work.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        owner = self.record("run")
        if owner is None:
            self.finish("run", {"digest": run_digest})
        elif owner["digest"] != run_digest:
            raise InvalidInput(
                "WorkDirInUse", f"{folder} holds the work of another run; give an empty folder, or remove it."
            )

    def record(self, stage: str) -> dict[str, Any] | None:
        """Return what a finished stage recorded, None for one that is not finished."""
        path = self._path(stage)
        if not path.is_file():
            return None
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record

    def finish(self, stage: str, record: dict[str, object]) -> None:
        """Mark a stage finished; from here on it is never repeated."""
        write_atomically(self._path(stage), json.dumps(record, sort_keys=True).encode())

    def fresh_folder(self, name: str) -> Path:
        """Return an empty folder, whatever an unfinished attempt left in it."""
        path = self.folder / name
        if path.exists():
            shutil.rmtree(path)
        path.mkdir()
        return path

    def _path(self, stage: str) -> Path:
        return self.folder / f"{stage}.json"


@dataclass
class Checkpoint:
    """The one checkpoint of a training loop: what ``module``'s trained parameters
    and ``optimizer`` were after ``step`` steps.

    ``every_seconds`` is the least time between two saves; 0 saves after every step.
    """

    path: Path
    module: nn.Module
    optimizer: torch.optim.Optimizer
    every_seconds: float = 30.0
    clock: Callable[[], float] = time.monotonic
    _saved_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._saved_at = self.clock()

    def restore(self) -> tuple[int, dict[str, float]]:
        """Put the saved state back; return its step and notes, or (0, {}) where nothing was saved."""
        if not self.path.is_file():
            return 0, {}
        with safe_open(self.path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            metadata = file.metadata()
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(tensors[f"module.{name}"])
        state = self.optimizer.state_dict()
        state["state"] = _nested(_under("optimizer.", tensors))
        self.optimizer.load_state_dict(state)
        notes: dict[str, float] = json.loads(metadata[_NOTES])
        return int(metadata[_STEP]), notes

    def save_when_due(self, step: int, notes: dict[str, float]) -> None:
        """Save unless the last save was less than ``every_seconds`` ago."""
        if self.clock() - self._saved_at >= self.every_seconds:
            self.save(step, notes)

    def save(self, step: int, notes: dict[str, float]) -> None:
        """Replace the checkpoint, whole or not at all."""
        tensors = {f"module.{name}": parameter for name, parameter in self._trained()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
        temporary = self.path.with_suffix(".part")
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata={_STEP: str(step), _NOTES: json.dumps(notes)},
        )
        replace_durably(temporary, self.path)
        self._saved_at = self.clock()

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what training changes; the rest is as it was before the first step."""
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def remove(self) -> None:
        """Forget it, once the loop's result is safe."""
        self.path.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that, killed at any moment, the old or the new one is there whole."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    replace_durably(temporary, path)


def replace_durably(temporary: Path, path: Path) -> None:
    """Flush ``temporary`` to disk and let it take the place of ``path``."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _nested(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Turn {"3.exp_avg": t} into {3: {"exp_avg": t}}, as an optimiser keeps its state."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    return state


def derived_seed(seed: int, *places: int) -> int:
    """Return a seed for one place in a run, such as an epoch or a step, that no other place shares."""
    value = seed & 0xFFFFFFFF
    for place in places:
        value = (value * 6364136223846793005 + place + 1442695040888963407) & (2**63 - 1)
        value ^= value >> 29
    return value


def generator(seed: int, *places: int) -> torch.Generator:
    """Return a random generator for one place in a run."""
    return torch.Generator().manual_seed(derived_seed(seed, *places))
