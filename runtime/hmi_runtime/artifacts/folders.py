"""Atomic creation and removal of folders on a local disk."""

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hmi_api.durable_files import fsync_path

_PARTIAL_PREFIX = ".partial-"
_ABANDONED_SECONDS = 24 * 3600


def fsync_tree(folder: Path) -> None:
    """Force everything below ``folder``, and it, to the disk."""
    for path in folder.rglob("*"):
        fsync_path(path)
    fsync_path(folder)


@contextmanager
def partial_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty folder below ``parent`` with a temporary name; remove it afterwards if it exists."""
    parent.mkdir(parents=True, exist_ok=True)
    partial = parent / f"{_PARTIAL_PREFIX}{uuid.uuid4().hex}"
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def move_into_place(partial: Path, final: Path) -> bool:
    """Rename ``partial`` to ``final``; return False if another process has done so first."""
    try:
        partial.rename(final)
    except OSError:
        # Renaming onto a folder that is not empty fails, with an error code that differs by file system.
        if final.is_dir():
            return False
        raise
    return True


def remove_folder(folder: Path) -> None:
    """Remove ``folder`` if it exists; rename it first, so that readers never see half of it.

    Processes that have memory-mapped a file of it keep reading the old bytes.
    """
    aside = folder.parent / f"{_PARTIAL_PREFIX}{uuid.uuid4().hex}"
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside, ignore_errors=True)


def sweep_abandoned(parent: Path) -> None:
    """Remove temporary folders that a killed process left below ``parent`` a day ago or earlier."""
    if not parent.is_dir():
        return
    oldest = time.time() - _ABANDONED_SECONDS
    for entry in parent.glob(f"{_PARTIAL_PREFIX}*"):
        try:
            abandoned = entry.stat().st_mtime < oldest
        except FileNotFoundError:
            continue  # its owner finished in between
        if abandoned:
            shutil.rmtree(entry, ignore_errors=True)
