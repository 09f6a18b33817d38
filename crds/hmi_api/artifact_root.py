"""The artifact store's root, opened with fsspec.

Only the control plane and the runtime import this module: other parts do not install fsspec.
"""

from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from hmi_api.artifacts import MANIFEST_FILE, ArtifactManifest, ArtifactRef
from hmi_api.names import digest_file
from hmi_api.security.proxies import Proxies, s3_proxies


def open_root(root: str) -> tuple[Any, str]:
    """Return the file system of an fsspec address, and the root's path in it without a slash at its end.

    Listings are not cached: other processes write to the same store. S3 is called through the proxy that the
    environment names. Raises ``ImportError`` or ``ValueError`` when the address's driver is not installed, or
    is not known, and ``InvalidInput`` ProxyUnsupported.
    """
    s3 = {"config_kwargs": {"proxies": s3_proxies(Proxies.from_environment())}}
    options = s3 if root.startswith("s3://") else {}
    filesystem, path = fsspec.url_to_fs(root, use_listings_cache=False, **options)
    return filesystem, str(path).rstrip("/")


def is_local(filesystem: Any) -> bool:
    """Return whether files lie on a disk of this machine, where folders must be made and bytes synced."""
    return isinstance(filesystem, LocalFileSystem)


def address_in(root: str, *parts: str) -> str:
    """Return the path of ``parts`` below a root's path; empty parts are left out."""
    return "/".join(part for part in (root, *parts) if part)


def is_stored(filesystem: Any, root: str, ref: ArtifactRef, manifest: ArtifactManifest, data: bytes) -> bool:
    """Return whether an artifact is complete below ``root``: ``data`` as manifest, and every file.

    Reads all of its files. An incomplete artifact must be written again.
    """
    try:
        if filesystem.cat_file(address_in(root, ref.uri, MANIFEST_FILE)) != data:
            return False
        return all(
            _digest(filesystem, address_in(root, ref.uri, file.path)) == file.digest
            for file in manifest.files
        )
    except FileNotFoundError:
        return False


def _digest(filesystem: Any, path: str) -> str:
    with filesystem.open(path, "rb") as file:
        return digest_file(file)
