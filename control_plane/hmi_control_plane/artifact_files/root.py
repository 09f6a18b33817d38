"""Opening the artifact store's root."""

from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


def open_root(root: str) -> tuple[Any, str]:
    """Return the file system of an fsspec address, and the root's path in it without a slash at its end.

    Listings are not cached: other processes write to the same store.
    """
    filesystem, path = fsspec.url_to_fs(root, use_listings_cache=False)
    return filesystem, str(path).rstrip("/")


def is_local(filesystem: Any) -> bool:
    """Say whether files lie on a disk of this machine, where folders must be made and bytes synced."""
    return isinstance(filesystem, LocalFileSystem)
