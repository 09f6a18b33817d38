"""``adapter_config.json`` of a PEFT LoRA folder: which options are read, and which are refused and why.

Every key that PEFT writes is listed here. An unknown key that has a value may change what the adapter
computes, so it is refused by name.

In PEFT, ``alpha_pattern`` names modules by Python regular expressions, which can backtrack for hours. Here
pydantic's Rust engine matches them, in time linear in the length of the module path: it has no look-around
and no backreferences, and refuses patterns that would compile to more than 10 MB.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import StringConstraints, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from hmi_api.errors import InvalidInput
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.adapters.peft.files import CONFIG_FILE, read_json, short

MAX_PATTERNS = 1000
MAX_EXPRESSIONS = 20
"""Most patterns that are more than a name: each may take a fifth of a second to compile."""
MAX_PATTERN_LENGTH = 256
_NAME = re.compile(r"[A-Za-z0-9_.]*")


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
    "arrow_config": "Arrow routes tokens between several adapters, which is not served",
    "megatron_config": "adapters of Megatron's layers are not served",
    "kasa_config": "KaSA changes the base's weights",
    "velora_config": "VeLoRA is not served",
    "monteclora_config": "MonteCLoRA is not served",
}
_READ = {
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "lora_alpha",
    "alpha_pattern",
    "use_rslora",
    "init_lora_weights",
}
_KNOWN_FROM_TENSORS = {
    "r",
    "rank_pattern",
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "bias",
}
"""Not read: the tensors show which modules have a LoRA, of which rank, and which are saved whole."""
_OF_TRAINING = {
    "auto_mapping",
    "peft_version",
    "inference_mode",
    "lora_dropout",
    "fan_in_fan_out",  # of base models whose matrices lie transposed; none here do
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "qalora_group_size",
    "ensure_weight_tying",
    "runtime_config",
}
"""Options about how the adapter was trained, which do not change what it computes."""
_KNOWN = {*_REFUSED_OPTIONS, *_READ, *_KNOWN_FROM_TENSORS, *_OF_TRAINING}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that also change the base's weights: the LoRA is then a difference from other weights."""
_LARGEST_ALPHA = 1e9


def by_first_pattern(values: Mapping[str, float], modules: Iterable[str], field: str) -> dict[str, float]:
    """Return the value of the first pattern that matches, for each module that one matches.

    As in PEFT, a pattern matches a whole module path, or all of it after some dot. ``field`` is the name of
    ``values`` in adapter_config.json. Raises ``InvalidInput`` AdapterPattern for patterns that are invalid,
    too long or too many.
    """
    if len(values) > MAX_PATTERNS:
        raise _refused(field, f"it has {len(values)} patterns, {MAX_PATTERNS} are read")
    expressions = sum(_NAME.fullmatch(pattern) is None for pattern in values)
    if expressions > MAX_EXPRESSIONS:
        raise _refused(
            field, f"{expressions} of its patterns are not plain names, at most {MAX_EXPRESSIONS} are read"
        )
    left, found = list(modules), dict[str, float]()
    for pattern, value in values.items():
        matcher = _matcher(field, pattern)
        matched = [module for module in left if _matches(matcher, module)]
        found |= dict.fromkeys(matched, value)
        left = [module for module in left if module not in found]
    return found


def _matcher(field: str, pattern: str) -> TypeAdapter[Any]:
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise _refused(
            field,
            f"a pattern has {len(pattern)} characters, {MAX_PATTERN_LENGTH} are read: {pattern[:40]!r}...",
        )
    try:
        _compiled(pattern)  # by itself, so that it cannot close the group that is put around it
        return _compiled(rf"^(?:.*\.)?(?:{pattern})$")
    except SchemaError as error:
        why = str(error).strip().splitlines()[-1].removeprefix("error: ")
        raise _refused(field, f"{pattern!r} is no pattern that is read ({why})") from error


def _compiled(pattern: str) -> TypeAdapter[Any]:
    return TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)])


def _matches(matcher: TypeAdapter[Any], module: str) -> bool:
    try:
        matcher.validate_python(module)
    except ValidationError:
        return False
    return True


def _refused(field: str, why: str) -> InvalidInput:
    return InvalidInput(
        "AdapterPattern",
        f"{field} in adapter_config.json cannot be used: {why}; name modules, or write patterns without "
        "look-around and backreferences.",
    )


@dataclass(frozen=True)
class LoraSettings:
    """The part of ``adapter_config.json`` that is needed to interpret the tensors."""

    task: TaskType | None
    base_name: str | None
    """The folder's name for the base model that it was trained on, if any."""
    revision: str | None
    alpha: float
    alpha_pattern: Mapping[str, float]
    rank_stabilised: bool

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read and check the folder's config.

        Raises ``InvalidInput``: AdapterNotPeft (no or broken config), AdapterUnsupported (another method
        than plain LoRA, or an unknown option), TaskUnsupported (another task than the two that encoders
        serve).
        """
        config = read_json(folder / CONFIG_FILE)
        method = config.get("peft_type")
        if method != "LORA":
            raise _unsupported(f"peft_type is {_shown(method)}; only LORA can be imported")
        for option, reason in _REFUSED_OPTIONS.items():
            if config.get(option):
                raise _unsupported(f"{option} is set: {reason}")
        for option, value in config.items():
            if value and option not in _KNOWN:
                raise _unsupported(
                    f"{CONFIG_FILE} has {short(option)}: {_shown(value)}, which this version does not know: "
                    "the adapter may mean something else; remove it if it changes nothing"
                )
        start = str(config.get("init_lora_weights", "")).lower()
        if start.startswith(_CHANGES_BASE):
            raise _unsupported(
                f"init_lora_weights is {short(start)}, which changes the base; save it again with "
                "path_initial_model_for_weight_conversion"
            )
        return cls(
            task=_task(config.get("task_type")),
            base_name=_text(config, "base_model_name_or_path"),
            revision=_text(config, "revision"),
            alpha=_number("lora_alpha", config.get("lora_alpha", 8)),
            alpha_pattern=_alphas(config.get("alpha_pattern")),
            rank_stabilised=_flag(config, "use_rslora"),
        )

    def scales(self, ranks: Mapping[str, int]) -> dict[str, float]:
        """Return what ``b @ a`` of each module is multiplied by: alpha / r, or alpha / sqrt(r) for rsLoRA.

        ``ranks`` are by module path. Raises ``InvalidInput`` AdapterPattern.
        """
        alphas = by_first_pattern(self.alpha_pattern, ranks, "alpha_pattern")
        return {
            module: alphas.get(module, self.alpha) / (math.sqrt(rank) if self.rank_stabilised else rank)
            for module, rank in ranks.items()
        }


def _task(name: object) -> TaskType | None:
    if name is None:
        return None
    task = TASK_TYPES.get(name) if isinstance(name, str) else None
    if task is None:
        raise InvalidInput(
            "TaskUnsupported",
            f"task_type {_shown(name)} is not served on encoders; import one of {', '.join(TASK_TYPES)}.",
        )
    return task


def _text(config: Mapping[str, Any], name: str) -> str | None:
    value = config.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _wrong_type(name, value, "a string")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST_ALPHA:
        raise _wrong_type(name, value, f"a number below {_LARGEST_ALPHA:g}")
    return float(value)


def _alphas(pattern: object) -> dict[str, float]:
    if pattern is None:
        return {}
    if not isinstance(pattern, dict):
        raise _wrong_type("alpha_pattern", pattern, "an object of numbers by module")
    return {key: _number(f"alpha_pattern[{short(key)!r}]", value) for key, value in pattern.items()}


def _flag(config: Mapping[str, Any], name: str) -> bool:
    value = config.get(name) or False
    if not isinstance(value, bool):
        raise _wrong_type(name, value, "true or false")
    return value


def _wrong_type(name: str, value: object, wanted: str) -> InvalidInput:
    return InvalidInput("AdapterNotPeft", f"{name} in {CONFIG_FILE} is {_shown(value)}; it must be {wanted}.")


def _shown(value: object) -> str:
    return short(str(value))


def _unsupported(why: str) -> InvalidInput:
    return InvalidInput("AdapterUnsupported", f"The PEFT folder cannot be served: {why}; or {_TRAIN_HERE}.")
