"""Adapters from elsewhere: PEFT folders, wherever they are."""

from pathlib import Path
from typing import Any

import fsspec

from hmi_api.errors import HmiError, InvalidInput
from hmi_api.task_adapter import Task
from hmi_runtime.adapters.peft_config import CONFIG_FILE, TENSORS_FILE
from hmi_runtime.adapters.peft_format import import_peft
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.training.foundation import Foundation
from hmi_runtime.training.remote import tried, unreadable

_PICKLE_FILE = "adapter_model.bin"
_LABELS_FILE = "config.json"  # optional; names the labels
_KNOWN_FILES = (CONFIG_FILE, TENSORS_FILE, _LABELS_FILE, _PICKLE_FILE)


def import_adapter(uri: str, folder: Path, foundation: Foundation, task: Task) -> AdapterWeights:
    """Read the PEFT folder at ``uri`` as an adapter for ``foundation``; ``folder`` keeps the local copy.

    Raises ``InvalidInput`` SourceNotFound, AdapterIsPickle and what ``import_peft`` raises.
    """
    return import_peft(fetch_folder(uri, folder), foundation.base, foundation.split, task)


def fetch_folder(uri: str, folder: Path) -> Path:
    """Copy a PEFT folder from any fsspec address into ``folder``: only the files that are read.

    Raises ``InvalidInput`` SourceNotFound, AdapterIsPickle; ``NotReady`` SourceAway.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
        root = path.rstrip("/")
        there = {name for name in _KNOWN_FILES if _is_file(filesystem, f"{root}/{name}", uri)}
        for name in there - {_PICKLE_FILE}:
            _copy(filesystem, f"{root}/{name}", folder / name, uri)
    except HmiError:
        raise
    except Exception as error:  # every file system has its own kinds
        raise unreadable(uri, "SourceNotFound", error) from error
    if TENSORS_FILE not in there and _PICKLE_FILE in there:
        raise InvalidInput(
            "AdapterIsPickle",
            f"{_PICKLE_FILE} is a pickle, which can run code when it is read; save the adapter again with "
            "save_pretrained(..., safe_serialization=True).",
        )
    if not {CONFIG_FILE, TENSORS_FILE} <= there:
        raise InvalidInput(
            "SourceNotFound", f"{uri} is no folder with {CONFIG_FILE} and {TENSORS_FILE}; give one that is."
        )
    return folder


def _is_file(filesystem: Any, path: str, uri: str) -> bool:
    try:
        return bool(tried(lambda: filesystem.info(path), uri)["type"] == "file")
    except FileNotFoundError:
        return False


def _copy(filesystem: Any, path: str, target: Path, uri: str) -> None:
    tried(lambda: filesystem.get_file(path, str(target)), uri)
