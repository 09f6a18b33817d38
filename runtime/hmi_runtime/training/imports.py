"""Adapters from elsewhere, as PEFT folders."""

from pathlib import Path

import fsspec


from hmi_api.errors import InvalidInput
from hmi_api.task_adapter import Task
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.training.foundation import Foundation

PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")


def fetch_folder(uri: str, folder: Path) -> Path:
    """Copy the PEFT folder at ``uri`` (any fsspec address) into ``folder``; only the files that are read.

    Raises ``InvalidInput`` SourceNotFound.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
        for name in PEFT_FILES:
            filesystem.get_file(f"{path.rstrip('/')}/{name}", str(folder / name))
    except (OSError, ValueError, ImportError) as error:
        raise InvalidInput(
            "SourceNotFound",
            f"{uri} cannot be read ({error}); give a folder with {' and '.join(PEFT_FILES)}.",
        ) from error
    return folder


def import_adapter(uri: str, folder: Path, foundation: Foundation, task: Task) -> AdapterWeights:
    """Read the PEFT folder at ``uri`` as an adapter on ``foundation``; ``folder`` keeps the local copy."""
    from hmi_runtime.adapters.peft_format import import_peft

    return import_peft(fetch_folder(uri, folder), foundation.base, foundation.split, task)
