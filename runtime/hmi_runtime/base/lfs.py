"""Git LFS pointers: what a clone without LFS has in place of large files."""

from pathlib import Path

_START = b"version https://git-lfs.github.com/spec/"

PULL = "is a git-lfs pointer, not the file itself; run `git lfs pull` where it comes from and give it again"
"""What is wrong and what to do, after the file's name."""


def is_lfs_pointer(path: Path) -> bool:
    """Whether ``path``, which must exist, is a pointer in the place of a file."""
    with path.open("rb") as file:
        return file.read(len(_START)) == _START
