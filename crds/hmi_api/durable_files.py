"""Writing, renaming and removing files such that a power failure loses nothing."""

import os
from pathlib import Path


def fsync_path(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file: after a kill or a power failure it has the old or the new content."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    replace_durably(temporary, path)


def replace_durably(temporary: Path, path: Path) -> None:
    """Force ``temporary`` to the disk and rename it to ``path``."""
    fsync_path(temporary)
    temporary.replace(path)
    fsync_path(path.parent)


def remove_durably(path: Path) -> None:
    """Remove a file if it exists."""
    if path.exists():
        path.unlink()
        fsync_path(path.parent)
