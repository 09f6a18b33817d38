"""Own copies of tensors in host memory: what a file maps is not what a budget should count."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar

from torch import Tensor

V = TypeVar("V")


def copy_to_host(value: V, *, pinned: bool = False) -> V:
    """Return ``value``, dataclasses and mappings of tensors, with every tensor copied to host memory.

    ``pinned`` copies to page-locked memory, from where a GPU can read on its own stream.
    """
    copied: object = value
    if isinstance(value, Tensor):
        copied = value.clone().pin_memory() if pinned else value.clone()
    elif isinstance(value, Mapping):
        copied = {key: copy_to_host(item, pinned=pinned) for key, item in value.items()}
    elif isinstance(value, tuple):
        copied = tuple(copy_to_host(item, pinned=pinned) for item in value)
    elif is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        copied = replace(value, **{name: copy_to_host(part, pinned=pinned) for name, part in parts.items()})
    return copied  # type: ignore[return-value]  # the same shape as went in
