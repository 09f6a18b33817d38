"""Download PEFT folders from any address, and export adapters as PEFT folders."""

import tempfile
from pathlib import Path
from typing import Any

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.errors import InvalidInput
from hmi_runtime.adapters.peft.exporter import ExportedHead, export_peft
from hmi_runtime.adapters.peft.files import (
    CONFIG_FILE,
    MAX_FILE_BYTES,
    MODEL_CONFIG_FILE,
    PICKLE_FILE,
    TENSORS_FILE,
    check_size,
    is_pickle,
)
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.artifacts.store import ArtifactStore
from hmi_runtime.outbound.clients import open_address
from hmi_runtime.training.resumable_io import reading_from, retry

_CHUNK_BYTES = 1 << 20


def download_peft_folder(uri: str, folder: Path) -> Path:
    """Copy the files of a PEFT folder that the import reads from any fsspec address into ``folder``.

    Raises ``InvalidInput`` SourceNotFound, AdapterIsPickle, and AdapterNotPeft for a file that is too large;
    ``NotReady`` SourceAway.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with reading_from(uri, "SourceNotFound"):
        filesystem, path = open_address(uri)
        root = path.rstrip("/")
        sizes = {name: _size(filesystem, f"{root}/{name}", uri) for name in (*MAX_FILE_BYTES, PICKLE_FILE)}
        there = {name: size for name, size in sizes.items() if size is not None}
        for name in (CONFIG_FILE, MODEL_CONFIG_FILE, TENSORS_FILE):
            if name in there:
                check_size(name, there[name])
                _copy(filesystem, f"{root}/{name}", folder / name, uri)
    if TENSORS_FILE not in there and PICKLE_FILE in there:
        raise is_pickle()
    if not {CONFIG_FILE, TENSORS_FILE} <= there.keys():
        raise InvalidInput(
            "SourceNotFound",
            f"{uri} is no folder with {CONFIG_FILE} and {TENSORS_FILE}; give such a folder.",
        )
    return folder


def _size(filesystem: Any, path: str, uri: str) -> int | None:
    """Return a file's size in bytes, 0 if its server does not say; None if there is no such file."""
    try:
        found = retry(lambda: filesystem.info(path), uri)
    except FileNotFoundError:
        return None
    return int(found.get("size") or 0) if found["type"] == "file" else None


def _copy(filesystem: Any, path: str, target: Path, uri: str) -> None:
    """Copy a file. Raise as soon as it is too large, since a server may announce less than it sends."""

    def copy() -> None:
        size = 0
        with filesystem.open(path, "rb") as source, target.open("wb") as copied:
            while chunk := source.read(_CHUNK_BYTES):
                size += len(chunk)
                check_size(target.name, size)
                copied.write(chunk)

    retry(copy, uri)


FAMILY, BASE_URI = "family", "baseUri"
"""Further fields in the manifest of a published adapter."""


def export_artifact(artifact: str, artifacts: str, out: Path) -> ExportedHead:
    """Write the adapter ``artifact`` (its uri in the store, or its digest) as a PEFT folder ``out``.

    Returns where the head is: among the folder's tensors or in a file of its own. Raises what fetching
    raises, and ``InvalidInput`` NotAnAdapter, NotExportable.
    """
    ref = _reference(artifact)
    store = ArtifactStore(artifacts)
    config = store.manifest(ref).config
    with tempfile.TemporaryDirectory() as cache:
        weights = AdapterWeights.load(store.fetch(ref, Path(cache)))
    return export_peft(weights, str(config[FAMILY]), out, str(config[BASE_URI]))


def _reference(artifact: str) -> ArtifactRef:
    digest = artifact.rpartition("/")[2].removeprefix("sha256:")
    kind = ArtifactKind.ADAPTER
    folder = artifact.rpartition("/")[0]
    if folder not in ("", kind.value.lower()):
        raise InvalidInput(
            "NotAnAdapter", f"{artifact} is no adapter; give the artifact of a TaskAdapter, adapter/..."
        )
    return ArtifactRef(kind=kind, uri=f"{kind.value.lower()}/{digest}", digest=f"sha256:{digest}", bytes=0)
