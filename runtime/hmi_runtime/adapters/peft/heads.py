"""The heads of transformers' task models, by family.

Sequence heads: BERT has a pooler (dense, tanh) and a classifier; RoBERTa a classifier of two layers
(dense, tanh, out_proj); DistilBERT a pre_classifier (ReLU) and a classifier. All read the first token.
Token heads are one classifier everywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from hmi_api.errors import InvalidInput
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.adapters.weights import Dense, Head


@dataclass(frozen=True)
class HeadLayout:
    """Module paths of a task model's head."""

    output: str
    dense: str | None = None
    activation: Literal["tanh", "relu"] = "tanh"
    saved: tuple[str, ...] = ("classifier",)
    """The modules that PEFT's ``modules_to_save`` must name to save all of the head."""


_TOKEN = HeadLayout(output="classifier")
_ROBERTA = HeadLayout(output="classifier.out_proj", dense="classifier.dense")
_SEQUENCE = {
    "bert": HeadLayout(output="classifier", dense="bert.pooler.dense", saved=("classifier", "bert.pooler")),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "distilbert": HeadLayout(
        output="classifier",
        dense="pre_classifier",
        activation="relu",
        saved=("classifier", "pre_classifier"),
    ),
}


PEFT_FAMILIES = frozenset(_SEQUENCE)
"""Families whose PEFT folders are read and written."""


def head_layout(family: str, task: TaskType) -> HeadLayout:
    """Return the layout of the head of a family's task model.

    Raises ``InvalidInput`` AdapterUnsupported for a family not of ``PEFT_FAMILIES``.
    """
    if family not in PEFT_FAMILIES:
        raise InvalidInput(
            "AdapterUnsupported",
            f"PEFT folders are read for {', '.join(sorted(PEFT_FAMILIES))}, not {family} yet; "
            "train here on the task's data.",
        )
    return _TOKEN if task is TaskType.TOKEN_CLASSIFICATION else _SEQUENCE[family]


def read_head(layout: HeadLayout, task: TaskType, tensors: Mapping[str, Tensor]) -> Head:
    """Return the head from ``tensors`` by module path, such as ``classifier.weight``.

    Raises ``InvalidInput`` HeadIncomplete when a part is missing, AdapterShape when one is no matrix with its
    bias.
    """
    weight, bias = _linear(layout, layout.output, tensors)
    if layout.dense is None:
        return Head("token" if task is TaskType.TOKEN_CLASSIFICATION else "first", weight, bias)
    return Head("first", weight, bias, Dense(*_linear(layout, layout.dense, tensors), layout.activation))


def head_tensors(layout: HeadLayout, head: Head) -> dict[str, Tensor] | None:
    """Return the head's tensors by module path; None when the task model has no such head."""
    output = {f"{layout.output}.weight": head.weight, f"{layout.output}.bias": head.bias}
    if layout.dense is None:
        return output if head.pooling == "token" and head.dense is None else None
    if head.pooling != "first" or head.dense is None or head.dense.activation != layout.activation:
        return None
    dense = {f"{layout.dense}.weight": head.dense.weight, f"{layout.dense}.bias": head.dense.bias}
    return {**output, **dense}


def _linear(layout: HeadLayout, module: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    try:
        weight, bias = tensors[f"{module}.weight"], tensors[f"{module}.bias"]
    except KeyError as error:
        raise InvalidInput(
            "HeadIncomplete",
            f"The PEFT folder lacks {error.args[0]}; train it with modules_to_save="
            f"{list(layout.saved)} and save it again.",
        ) from error
    if weight.dim() != 2 or bias.shape != weight.shape[:1]:
        raise InvalidInput(
            "AdapterShape",
            f"{module} has a weight of shape {list(weight.shape)} and a bias of shape {list(bias.shape)}; "
            "a head has one row and one bias for each score.",
        )
    return weight, bias
