"""Files that are whole at every moment, whenever the machine or the process stops."""

import json
import os
from pathlib import Path
from typing import Any

_UNFINISHED = ".unfinished"


def write_atomically(path: Path, value: Any) -> None:
    """Replace a JSON file: readers see the old content or the new, and the new survives a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + _UNFINISHED)
    with aside.open("w", encoding="utf-8") as handle:
        json.dump(value, handle, ensure_ascii=False, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
    aside.replace(path)
    _sync_folder(path.parent)


def remove_durably(path: Path) -> None:
    """Remove a file, so that it stays removed; nothing happens when it is not there."""
    if path.exists():
        path.unlink()
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
