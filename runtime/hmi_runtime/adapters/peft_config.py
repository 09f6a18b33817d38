"""``adapter_config.json`` of a PEFT LoRA folder: what is read of it, and what is refused and why."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hmi_api.errors import InvalidInput
from hmi_api.task_adapter import TaskType

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"

TASK_TYPES = {"SEQ_CLS": TaskType.SEQUENCE_CLASSIFICATION, "TOKEN_CLS": TaskType.TOKEN_CLASSIFICATION}

_TRAIN_HERE = "train here on the task's data"
_REFUSED_OPTIONS = {
    "use_dora": "DoRA rescales whole matrices per adapter, which rows of one batch cannot share",
    "lora_bias": "biases inside the LoRA are not served",
    "use_qalora": "QA-LoRA pools its input, which is not served",
    "layer_replication": "replicated layers change the base model",
    "trainable_token_indices": "changed token embeddings lie below every split",
    "target_parameters": "LoRA on bare parameters is not served",
    "alora_invocation_tokens": "activated LoRA switches on inside a text, which is not served",
    "use_bdlora": "block-diagonal LoRA is not served",
    "kasa_config": "KaSA changes the base's weights",
    "velora_config": "VeLoRA is not served",
    "monteclora_config": "MonteCLoRA is not served",
}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to start a LoRA that also change the base's weights: the file's difference is not from the base."""


@dataclass(frozen=True)
class LoraSettings:
    """The part of ``adapter_config.json`` that says how strong each difference is."""

    task: TaskType | None
    alpha: float
    alpha_pattern: Mapping[str, float]
    rank_stabilised: bool

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read and judge the folder's config.

        Raises ``InvalidInput``: AdapterNotPeft (no or broken config), AdapterUnsupported (another method
        than plain LoRA), TaskUnsupported (another task than the two that encoders serve).
        """
        config = _read_json(folder / CONFIG_FILE)
        method = str(config.get("peft_type"))
        if method != "LORA":
            raise _unsupported(f"peft_type is {method}; only LORA can be imported")
        for option, reason in _REFUSED_OPTIONS.items():
            if config.get(option):
                raise _unsupported(f"{option} is set: {reason}")
        start = str(config.get("init_lora_weights", "")).lower()
        if start.startswith(_CHANGES_BASE):
            raise _unsupported(
                f"init_lora_weights is {start}, which changes the base; save it again with "
                "path_initial_model_for_weight_conversion"
            )
        try:
            return cls(
                task=_task(config.get("task_type")),
                alpha=float(config.get("lora_alpha", 8)),
                alpha_pattern={str(k): float(v) for k, v in (config.get("alpha_pattern") or {}).items()},
                rank_stabilised=bool(config.get("use_rslora", False)),
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidInput(
                "AdapterNotPeft", f"{CONFIG_FILE} has a value of the wrong type: {error}."
            ) from error

    def scale(self, module: str, rank: int) -> float:
        """Return what ``b @ a`` of a module is multiplied by: alpha / r, or alpha / sqrt(r) for rsLoRA."""
        alpha = next(
            (
                value
                for pattern, value in self.alpha_pattern.items()
                if re.match(rf"(.*\.)?({pattern})$", module)
            ),
            self.alpha,
        )
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(
            "AdapterNotPeft",
            f"{path.name} cannot be read ({error}); give a folder that save_pretrained of peft wrote.",
        ) from error
    if not isinstance(config, dict):
        raise InvalidInput("AdapterNotPeft", f"{path.name} is no JSON object.")
    return config


def _task(name: str | None) -> TaskType | None:
    if name is None:
        return None
    if name not in TASK_TYPES:
        raise InvalidInput(
            "TaskUnsupported",
            f"task_type {name} is not served on encoders; import one of {', '.join(TASK_TYPES)}.",
        )
    return TASK_TYPES[name]


def _unsupported(why: str) -> InvalidInput:
    return InvalidInput("AdapterUnsupported", f"The PEFT folder cannot be served: {why}; or {_TRAIN_HERE}.")
