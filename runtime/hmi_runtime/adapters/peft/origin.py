"""What a PEFT folder says about the model that it was made for: its base, its labels, its kind of problem.

The base's name is in adapter_config.json, the rest in the model's config.json if the folder has one. A folder
that contradicts the Domain or the task is refused, since its answers would have another meaning.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hmi_api.errors import InvalidInput
from hmi_api.internal.storable import text_problem
from hmi_runtime.adapters.peft.config import LoraSettings
from hmi_runtime.adapters.peft.files import MODEL_CONFIG_FILE, read_json, short
from hmi_runtime.models.families import encoder_config
from hmi_runtime.models.source import BaseModel

_HUB_CACHE = re.compile(r"models--([^/]+)--([^/]+)(/|$)")
_PLACEHOLDER = re.compile(r"LABEL_[0-9]+")
_SINGLE_LABEL = "single_label_classification"
_MOST_LABELS = 10_000
_LONGEST_LABEL = 256


def check_base_name(
    settings: LoraSettings, base: BaseModel, *, also_named: str | None = None, revision: str | None = None
) -> None:
    """Raise ``InvalidInput`` AdapterForAnotherBase if the folder names another base model than ``base``.

    Two names are the same if their last parts are equal, in any case, and so are their owners if both have
    one; a path in a wheel's package names the wheel. ``also_named`` is another name of the base model, given
    by the adapter's owner; ``revision`` is the one to which the Domain pins it. A folder that names no base
    model is accepted.
    """
    theirs = settings.base_name
    ours = [_owner_and_name(base.uri, bare_is_path=True)]
    if also_named:
        ours.append(_owner_and_name(also_named))
    if (
        theirs is not None
        and not any(_same_name(_owner_and_name(theirs), name) for name in ours)
        and not _is_in_wheel(theirs, base.uri)
    ):
        raise InvalidInput(
            "AdapterForAnotherBase",
            f"The PEFT folder was trained on {short(theirs)!r} (base_model_name_or_path), the Domain uses "
            f"{base.uri!r}. Use a Domain on the former; or, if both are the same weights under two names, "
            "set source.baseModelName: " + short(theirs),
        )
    if settings.revision is not None and revision is not None and settings.revision != revision:
        raise InvalidInput(
            "AdapterForAnotherBase",
            f"The PEFT folder was trained on revision {short(settings.revision)!r} of the base model, the "
            f"Domain uses {revision!r}; use a Domain on the former.",
        )


_Name = tuple[str | None, str]
"""A model's owner on the hub, None if unknown, and its name there; or a folder's name."""


def _same_name(theirs: _Name, ours: _Name) -> bool:
    owners_differ = theirs[0] is not None and ours[0] is not None and theirs[0] != ours[0]
    return theirs[1] == ours[1] and not owners_differ


def _is_in_wheel(name: str, uri: str) -> bool:
    """Return whether ``name`` is a path in the package of a wheel:// address."""
    scheme, _, package = uri.partition("://")
    parts = re.split(r"[/\\]", name.replace("-", "_"))
    return scheme == "wheel" and package.replace("-", "_") in parts


def _owner_and_name(name: str, *, bare_is_path: bool = False) -> _Name:
    """Parse ``name``, a path or a hub's name; ``bare_is_path``: a/b without a scheme is a folder."""
    cached = _HUB_CACHE.search(name)
    if cached is not None:
        return cached[1].casefold(), cached[2].casefold()
    scheme, separator, rest = name.partition("://")
    path = (rest if separator else name).casefold()
    parts = [part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..")]
    hub = scheme == "hf" if separator else not (bare_is_path or path.startswith((".", "/", "\\")))
    return (parts[0] if hub and len(parts) == 2 else None), (parts[-1] if parts else "")


def read_model_config(folder: Path) -> dict[str, Any]:
    """Return the model's config.json, or {} if the folder has none.

    Raises ``InvalidInput`` AdapterNotPeft if it cannot be read.
    """
    path = folder / MODEL_CONFIG_FILE
    return read_json(path) if path.is_file() else {}


def check_model(model: dict[str, Any], base: BaseModel) -> None:
    """Raise ``InvalidInput`` if a config.json is for another model than ``base``, or an unsupported problem.

    Reasons: AdapterForAnotherBase, TaskUnsupported.
    """
    problem = model.get("problem_type")
    if problem not in (None, _SINGLE_LABEL):
        raise InvalidInput(
            "TaskUnsupported",
            f"{MODEL_CONFIG_FILE} says problem_type {short(str(problem))!r}, but HMI serves a softmax over "
            "labels, of which one applies. If several may apply, train one task for each label, with the "
            "labels yes and no.",
        )
    if "model_type" not in model:
        return
    own = base.config
    try:
        theirs = encoder_config(model, cls_id=own.cls_id, sep_id=own.sep_id, pad_id=own.pad_id)
    except (InvalidInput, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InvalidInput(
            "AdapterForAnotherBase",
            f"{MODEL_CONFIG_FILE} of the PEFT folder describes no model like the Domain's ({error}); use a "
            "Domain on the base model that the adapter was trained on.",
        ) from error
    ours, found = asdict(own), asdict(theirs)
    differing = [
        f"{name} {short(str(found[name]))}, not {ours[name]}" for name in ours if found[name] != ours[name]
    ]
    if differing:
        raise InvalidInput(
            "AdapterForAnotherBase",
            f"{MODEL_CONFIG_FILE} of the PEFT folder describes another model than the Domain's: "
            f"{'; '.join(differing)}. Use a Domain on the base model that the adapter was trained on.",
        )


def label_names(declared: Sequence[str], model: dict[str, Any], count: int) -> tuple[str, ...]:
    """Return the names of ``count`` scores, in their order.

    They are those of id2label in config.json, else those ``declared``, else LABEL_0, LABEL_1... Raises
    ``InvalidInput`` AdapterLabels if the two differ, in names or order, or do not fit the head: answers would
    have wrong labels. Raises TaskUnsupported for one score, which no softmax can serve.
    """
    if count < 2:
        raise InvalidInput(
            "TaskUnsupported",
            "The PEFT folder's head gives one score, as for a regression or a sigmoid. HMI serves a softmax, "
            "which turns any single score into 1.0; train it with num_labels=2 and import that.",
        )
    named = _named_labels(model)
    if named is None:
        if declared and len(declared) != count:
            raise _labels(f"task.labels has {len(declared)} names, the head gives {count} scores")
        return tuple(declared) or tuple(f"LABEL_{number}" for number in range(count))
    if len(named) != count:
        raise _labels(
            f"id2label in {MODEL_CONFIG_FILE} has {len(named)} names, the head gives {count} scores"
        )
    if declared and tuple(declared) != named:
        raise _labels(
            f"task.labels is [{short(', '.join(declared))}], id2label in {MODEL_CONFIG_FILE} is "
            f"[{short(', '.join(named))}]; give the same names in the same order, or leave task.labels out"
        )
    return named


def _named_labels(model: dict[str, Any]) -> tuple[str, ...] | None:
    """Return id2label as a tuple; None if there is none, or only placeholders such as LABEL_0."""
    by_number = model.get("id2label")
    if not by_number:
        return None
    if not isinstance(by_number, dict) or len(by_number) > _MOST_LABELS:
        raise _labels(f"id2label in {MODEL_CONFIG_FILE} is not a map of at most {_MOST_LABELS} labels")
    labels = [by_number.get(str(number)) for number in range(len(by_number))]
    named = tuple(str(label) for label in labels if _is_name(label))
    if len(named) != len(labels) or len(set(named)) != len(named):
        raise _labels(
            f"id2label in {MODEL_CONFIG_FILE} does not give every number from 0 a different name, "
            f"of at most {_LONGEST_LABEL} characters that can be stored"
        )
    if all(_PLACEHOLDER.fullmatch(label) for label in named):
        return None
    numbers = model.get("label2id")
    if numbers and (
        not isinstance(numbers, dict)
        or {label: str(number) for label, number in numbers.items()}
        != {label: str(number) for number, label in enumerate(named)}
    ):
        raise _labels(f"id2label and label2id in {MODEL_CONFIG_FILE} contradict each other")
    return named


def _is_name(label: object) -> bool:
    """Return whether a label can name a score: an integer, or a text that is not blank and can be stored."""
    if isinstance(label, bool) or not isinstance(label, str | int):
        return False
    text = str(label)
    return bool(text.strip()) and len(text) <= _LONGEST_LABEL and text_problem(text) is None


def _labels(why: str) -> InvalidInput:
    return InvalidInput("AdapterLabels", f"{why}.")
