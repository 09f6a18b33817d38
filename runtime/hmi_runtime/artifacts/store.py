"""Publishing and fetching artifacts over fsspec: a local folder, memory, or an S3-compatible store."""

import hashlib
import shutil
import threading
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from hmi_api.artifacts import ArtifactFile, ArtifactKind, ArtifactManifest, ArtifactRef
from hmi_api.errors import Damaged, InvalidInput, NotReady
from hmi_runtime.artifacts.folders import (
    fsync_path,
    fsync_tree,
    move_into_place,
    partial_folder,
    remove_folder,
    sweep_abandoned,
)
from hmi_runtime.artifacts.verification import (
    MANIFEST_FILE,
    check_file,
    check_format,
    check_measured,
    check_path,
    chunks,
    describe_folder,
    digest_of,
    manifest_bytes,
    missing_file,
    read_manifest,
)


class ArtifactStore:
    """A store of immutable artifacts, each a folder named by its manifest's digest.

    Safe to share between threads; processes may share the root and the cache folders.
    """

    def __init__(self, root: str) -> None:
        """Open the store at ``root``: a folder, or an fsspec address such as ``s3://bucket/prefix``.

        Raises ``InvalidInput`` ArtifactStoreUnsupported when the address's driver is not installed.
        """
        try:
            self._fs, path = fsspec.url_to_fs(root)
        except (ImportError, ValueError) as error:
            raise InvalidInput(
                "ArtifactStoreUnsupported",
                f"The artifact store {root!r} cannot be opened ({error}); use a folder, or install its "
                "driver (`hmi[s3]` for s3://).",
            ) from error
        self._root = str(path).rstrip("/")
        self._local_root = Path(self._root) if isinstance(self._fs, LocalFileSystem) else None
        self._guard = threading.Lock()
        self._locks: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
        self._verified: set[Path] = set()
        self._swept: set[Path] = set()

    # --- publishing ---------------------------------------------------------------------------------

    def publish(
        self,
        kind: ArtifactKind,
        folder: Path,
        *,
        base_digest: str,
        layers_digest: str | None = None,
        config: Mapping[str, object] | None = None,
    ) -> ArtifactRef:
        """Store all files of ``folder`` as one artifact and return its reference.

        The same content gives the same reference and is stored once. Readers see the artifact whole or
        not at all. Raises ``InvalidInput`` NotSafetensors or ArtifactEmpty.
        """
        manifest = ArtifactManifest(
            kind=kind,
            base_digest=base_digest,
            layers_digest=layers_digest,
            files=describe_folder(folder),
            config=dict(config or {}),
        )
        data = manifest_bytes(manifest)
        digest = digest_of(data)
        ref = ArtifactRef(
            kind=kind,
            uri=f"{kind.value.lower()}/{digest.removeprefix('sha256:')}",
            digest=digest,
            bytes=sum(file.bytes for file in manifest.files) + len(data),
        )
        if not self._is_stored(ref, manifest, data):
            if self._local_root is None:
                self._upload(ref, manifest, data, folder)
            else:
                final = self._local_root / ref.uri
                self._sweep_once(final.parent)
                _publish_locally(final, manifest, data, folder)
        return ref

    def _is_stored(self, ref: ArtifactRef, manifest: ArtifactManifest, data: bytes) -> bool:
        """Whether the artifact is there with every file in its full size; a broken one is written again."""
        try:
            stored: bytes = self._fs.cat_file(self._address(ref.uri, MANIFEST_FILE))
            sizes = [self._fs.size(self._address(ref.uri, file.path)) for file in manifest.files]
        except FileNotFoundError:
            return False
        return stored == data and sizes == [file.bytes for file in manifest.files]

    def _upload(self, ref: ArtifactRef, manifest: ArtifactManifest, data: bytes, folder: Path) -> None:
        """Write to an object store, manifest last: without it the rest is not an artifact."""
        for file in manifest.files:
            address = self._address(ref.uri, file.path)
            with (folder / file.path).open("rb") as source, self._fs.open(address, "wb") as target:
                shutil.copyfileobj(source, target)
        self._fs.pipe_file(self._address(ref.uri, MANIFEST_FILE), data)

    def _address(self, uri: str, name: str = "") -> str:
        return "/".join(part for part in (self._root, uri, name) if part)

    # --- fetching -----------------------------------------------------------------------------------

    def manifest(self, ref: ArtifactRef) -> ArtifactManifest:
        """Return the verified manifest; raises as ``fetch`` does."""
        return read_manifest(self._manifest_bytes(ref), ref)

    def fetch(self, ref: ArtifactRef, cache_dir: Path) -> Path:
        """Return a local folder with the artifact's files, each one's size and digest checked.

        Threads that ask for the same artifact at once share one download; processes that share
        ``cache_dir`` never see each other's unfinished copies. A copy already there is checked again once
        by every process, and fetched anew if it does not hold.

        Raises ``NotReady`` ArtifactMissing when it is not (yet) in the store; ``Damaged`` ArtifactMissing,
        ArtifactTruncated, DigestMismatch or ManifestInvalid; ``InvalidInput`` NotSafetensors,
        PathOutsideArtifact or FormatTooNew.
        """
        copy = _copy_folder(ref, cache_dir)
        with self._lock_for(copy):
            if copy in self._verified and (copy / MANIFEST_FILE).is_file():
                return copy
            if not _copy_holds(copy, ref):
                self._download(ref, copy)
            self._verified.add(copy)
        return copy

    def evict(self, ref: ArtifactRef, cache_dir: Path) -> None:
        """Remove the local copy that ``fetch`` made; absent is fine."""
        copy = _copy_folder(ref, cache_dir)
        with self._lock_for(copy):
            self._verified.discard(copy)
            remove_folder(copy)

    def delete(self, ref: ArtifactRef) -> None:
        """Remove an artifact from the store; absent is fine. Local copies stay until evicted."""
        check_path(ref.uri)
        if self._local_root is not None:
            remove_folder(self._local_root / ref.uri)
            return
        # No manifest: an upload or a delete that never finished; the other files may still be there.
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._address(ref.uri, MANIFEST_FILE))
        if self._fs.exists(self._address(ref.uri)):
            self._fs.rm(self._address(ref.uri), recursive=True)

    def _lock_for(self, copy: Path) -> threading.Lock:
        with self._guard:
            return self._locks[copy]

    def _manifest_bytes(self, ref: ArtifactRef) -> bytes:
        check_path(ref.uri)
        try:
            data: bytes = self._fs.cat_file(self._address(ref.uri, MANIFEST_FILE))
        except FileNotFoundError as error:
            raise NotReady(
                "ArtifactMissing",
                f"{ref.uri} is not in the artifact store; wait until it is published, or publish it again.",
            ) from error
        return data

    def _download(self, ref: ArtifactRef, copy: Path) -> None:
        data = self._manifest_bytes(ref)
        manifest = read_manifest(data, ref)
        self._sweep_once(copy.parent)
        with partial_folder(copy.parent) as partial:
            for file in manifest.files:
                self._download_file(ref.uri, file, partial / file.path)
            (partial / MANIFEST_FILE).write_bytes(data)
            if not move_into_place(partial, copy):
                _check_copy(copy, ref)  # another process finished first; trust its bytes no more than ours

    def _sweep_once(self, parent: Path) -> None:
        """Clear what killed processes left in ``parent``, the first time it is used.

        Once is enough for leftovers of a day ago, and a listing each time would make the ten-thousandth
        artifact dearer than the tenth.
        """
        with self._guard:
            if parent in self._swept:
                return
            self._swept.add(parent)
        sweep_abandoned(parent)

    def _download_file(self, uri: str, file: ArtifactFile, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._fs.open(self._address(uri, file.path), "rb") as source:
                size, digest = _copy_stream(source, target)
        except FileNotFoundError as error:
            raise missing_file(file, uri) from error
        check_measured(file, size, digest, uri)
        check_format(file.path, target)


def manifest_of_copy(copy: Path) -> ArtifactManifest:
    """Return the manifest of a folder that ``ArtifactStore.fetch`` gave, which has verified it."""
    return ArtifactManifest.model_validate_json((copy / MANIFEST_FILE).read_bytes())


def _publish_locally(final: Path, manifest: ArtifactManifest, data: bytes, folder: Path) -> None:
    """Copy ``folder`` to ``final`` under a temporary name and rename it, replacing a broken one."""
    with partial_folder(final.parent) as partial:
        for file in manifest.files:
            target = partial / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with (folder / file.path).open("rb") as source:
                size, digest = _copy_stream(source, target)
            check_measured(file, size, digest, str(folder))
        (partial / MANIFEST_FILE).write_bytes(data)
        fsync_tree(partial)  # so that after a power cut the name never leads to less than all of it
        if not move_into_place(partial, final) and not _local_folder_holds(final, manifest, data):
            remove_folder(final)
            move_into_place(partial, final)
        fsync_path(final.parent)


def _local_folder_holds(folder: Path, manifest: ArtifactManifest, data: bytes) -> bool:
    try:
        sizes = [(folder / file.path).stat().st_size for file in manifest.files]
        return (folder / MANIFEST_FILE).read_bytes() == data and sizes == [f.bytes for f in manifest.files]
    except FileNotFoundError:
        return False


def _copy_stream(source: Any, target: Path) -> tuple[int, str]:
    """Copy an open binary file to ``target``; return its size and digest as they passed by."""
    running, size = hashlib.sha256(), 0
    with target.open("wb") as sink:
        for piece in chunks(source):
            running.update(piece)
            sink.write(piece)
            size += len(piece)
    return size, f"sha256:{running.hexdigest()}"


def _copy_folder(ref: ArtifactRef, cache_dir: Path) -> Path:
    """Where the local copy lies: by digest alone, so that the reference's uri cannot lead elsewhere."""
    algorithm, _, name = ref.digest.partition(":")
    if algorithm != "sha256" or len(name) != 64 or not set(name) <= set("0123456789abcdef"):
        raise InvalidInput(
            "DigestInvalid", f"{ref.digest!r} is no sha256: digest; use the catalog's reference."
        )
    return cache_dir / ref.kind.value.lower() / name


def _copy_holds(copy: Path, ref: ArtifactRef) -> bool:
    """Whether a local copy is there and whole; a broken one is removed."""
    if not copy.is_dir():
        return False
    try:
        _check_copy(copy, ref)
    except (Damaged, FileNotFoundError):
        remove_folder(copy)
        return False
    return True


def _check_copy(copy: Path, ref: ArtifactRef) -> None:
    manifest = read_manifest((copy / MANIFEST_FILE).read_bytes(), ref)
    for file in manifest.files:
        check_file(file, copy / file.path, ref.uri)
