"""The artifact store: publishing by digest, and verified copies on the local disk.

``Store`` is what all stores share. ``ArtifactStore`` keeps the files at an fsspec address: a local folder,
memory, or an S3-compatible store.
"""

import hashlib
import re
import shutil
import threading
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from hmi_api.artifact_root import address_in, is_local, is_stored, open_root
from hmi_api.artifacts import (
    MANIFEST_FILE,
    ArtifactFile,
    ArtifactKind,
    ArtifactManifest,
    ArtifactRef,
    artifact_uri,
)
from hmi_api.durable_files import fsync_path
from hmi_api.errors import Damaged, InvalidInput, NotReady
from hmi_api.names import digest_bytes
from hmi_runtime.artifacts.folders import (
    fsync_tree,
    move_into_place,
    partial_folder,
    remove_folder,
    sweep_abandoned,
)
from hmi_runtime.artifacts.verification import (
    RETRAIN_ADVICE,
    check_file,
    check_format,
    check_measured,
    check_path,
    chunks,
    describe_folder,
    manifest_bytes,
    missing_file,
    read_manifest,
)

_Signature = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and modification time of every file of a copy, to notice altered files."""


class Store(ABC):
    """A store of immutable artifacts, each a folder named by its manifest's digest.

    Safe to share between threads; processes may share the store and the cache folders.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
        self._verified: dict[Path, _Signature] = {}
        self._swept: set[Path] = set()

    # --- implemented by each store ------------------------------------------------------------------

    @abstractmethod
    def _put(self, ref: ArtifactRef, manifest: ArtifactManifest, data: bytes, folder: Path) -> None:
        """Store the files of ``folder`` as an artifact, unless it exists; ``data`` is its manifest.

        Readers see it whole or not at all.
        """

    @abstractmethod
    def _manifest_bytes(self, ref: ArtifactRef) -> bytes:
        """Return the stored manifest's bytes; raises ``NotReady`` ArtifactMissing."""

    @abstractmethod
    def _reading(self, ref: ArtifactRef, path: str) -> AbstractContextManager[Iterable[bytes]]:
        """Yield a file of an artifact in pieces; raises ``FileNotFoundError``."""

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
        digest = digest_bytes(data)
        ref = ArtifactRef(
            kind=kind,
            uri=artifact_uri(kind, digest),
            digest=digest,
            bytes=sum(file.bytes for file in manifest.files) + len(data),
        )
        self._put(ref, manifest, data, folder)
        return ref

    # --- fetching -----------------------------------------------------------------------------------

    def manifest(self, ref: ArtifactRef) -> ArtifactManifest:
        """Return the verified manifest; raises as ``fetch`` does."""
        check_path(ref.uri)
        return read_manifest(self._manifest_bytes(ref), ref)

    def fetch(self, ref: ArtifactRef, cache_dir: Path) -> Path:
        """Return a local folder with the artifact's files, each one's size and digest checked.

        Threads that ask for the same artifact at once share one download; processes that share ``cache_dir``
        never see each other's unfinished copies. An existing copy is checked once per process, and again when
        its files changed; an invalid copy is downloaded again.

        Raises ``NotReady`` ArtifactMissing when it is not (yet) in the store; ``Damaged`` ArtifactMissing,
        ArtifactTruncated, DigestMismatch or ManifestInvalid; ``InvalidInput`` NotSafetensors,
        PathOutsideArtifact or FormatTooNew.
        """
        copy = _copy_folder(ref, cache_dir)
        with self._guard:
            lock = self._locks[copy]
        with lock:
            if copy not in self._verified or self._verified[copy] != _signature(copy):
                if not _is_complete(copy, ref):
                    self._download(ref, copy)
                self._verified[copy] = _signature(copy)
        return copy

    def _download(self, ref: ArtifactRef, copy: Path) -> None:
        check_path(ref.uri)
        data = self._manifest_bytes(ref)
        manifest = read_manifest(data, ref)
        self._sweep_once(copy.parent)
        with partial_folder(copy.parent) as partial:
            for file in manifest.files:
                self._download_file(ref, file, partial / file.path)
            (partial / MANIFEST_FILE).write_bytes(data)
            if not move_into_place(partial, copy):
                _check_copy(copy, ref)  # another process finished first: verify its copy too

    def _sweep_once(self, parent: Path) -> None:
        """Remove leftovers of killed processes in ``parent``, the first time it is used.

        Only once, since a listing takes longer with every artifact.
        """
        with self._guard:
            if parent in self._swept:
                return
            self._swept.add(parent)
        sweep_abandoned(parent)

    def _download_file(self, ref: ArtifactRef, file: ArtifactFile, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._reading(ref, file.path) as pieces:
                size, digest = write_pieces(pieces, target)
        except FileNotFoundError as error:
            raise missing_file(file, ref.uri) from error
        check_measured(file, size, digest, ref.uri)
        check_format(file.path, target)


def write_pieces(pieces: Iterable[bytes], target: Path) -> tuple[int, str]:
    """Write ``pieces`` to ``target``; return their size and digest."""
    running, size = hashlib.sha256(), 0
    with target.open("wb") as sink:
        for piece in pieces:
            running.update(piece)
            sink.write(piece)
            size += len(piece)
    return size, f"sha256:{running.hexdigest()}"


def _copy_folder(ref: ArtifactRef, cache_dir: Path) -> Path:
    """Return the folder of the local copy, by digest only, so that a malicious uri cannot lead elsewhere."""
    digits = re.fullmatch("sha256:([0-9a-f]{64})", ref.digest)
    if digits is None:
        raise InvalidInput(
            "DigestInvalid", f"{ref.digest!r} is not a sha256: digest; use the catalog's reference."
        )
    return cache_dir / ref.kind.value.lower() / digits[1]


def _signature(copy: Path) -> _Signature:
    files = ((path, path.stat()) for path in sorted(copy.rglob("*")))
    return tuple((path.name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in files)


def _is_complete(copy: Path, ref: ArtifactRef) -> bool:
    """Return whether a local copy exists and is complete; a broken one is removed."""
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


class ArtifactStore(Store):
    """The store at an fsspec address to which this process has access."""

    def __init__(self, root: str) -> None:
        """Open the store at ``root``: a folder, or an fsspec address such as ``s3://bucket/prefix``.

        Raises ``InvalidInput`` ArtifactStoreUnsupported when the address's driver is not installed.
        """
        super().__init__()
        try:
            self._fs, self._root = open_root(root)
        except (ImportError, ValueError) as error:
            raise InvalidInput(
                "ArtifactStoreUnsupported",
                f"The artifact store {root!r} cannot be opened ({error}); use a folder, or install its "
                "driver (`hmi[s3]` for s3://).",
            ) from error
        self._local_root = Path(self._root) if is_local(self._fs) else None

    def delete(self, ref: ArtifactRef) -> None:
        """Remove an artifact from the store; absent is fine. Local copies stay until evicted."""
        check_path(ref.uri)
        if self._local_root is not None:
            remove_folder(self._local_root / ref.uri)
            return
        # No manifest: an upload or a deletion that never finished; the other files may still exist.
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._address(ref.uri, MANIFEST_FILE))
        if self._fs.exists(self._address(ref.uri)):
            self._fs.rm(self._address(ref.uri), recursive=True)

    def _put(self, ref: ArtifactRef, manifest: ArtifactManifest, data: bytes, folder: Path) -> None:
        if is_stored(self._fs, self._root, ref, manifest, data):  # a broken one is written again
            return
        if self._local_root is None:
            self._upload(ref, manifest, data, folder)
        else:
            final = self._local_root / ref.uri
            self._sweep_once(final.parent)
            self._publish_locally(final, ref, manifest, data, folder)

    def _publish_locally(
        self, final: Path, ref: ArtifactRef, manifest: ArtifactManifest, data: bytes, folder: Path
    ) -> None:
        """Copy ``folder`` to ``final`` under a temporary name and rename it, replacing a broken one."""
        with partial_folder(final.parent) as partial:
            for file in manifest.files:
                target = partial / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                with (folder / file.path).open("rb") as source:
                    size, digest = write_pieces(chunks(source), target)
                check_measured(file, size, digest, str(folder))
            (partial / MANIFEST_FILE).write_bytes(data)
            fsync_tree(partial)  # after a power cut, the final name must not lead to an incomplete artifact
            if not move_into_place(partial, final) and not is_stored(
                self._fs, self._root, ref, manifest, data
            ):
                remove_folder(final)
                move_into_place(partial, final)
            fsync_path(final.parent)

    def _upload(self, ref: ArtifactRef, manifest: ArtifactManifest, data: bytes, folder: Path) -> None:
        """Write to an object store, manifest last: without it the rest is not an artifact."""
        for file in manifest.files:
            address = self._address(ref.uri, file.path)
            with (folder / file.path).open("rb") as source, self._fs.open(address, "wb") as target:
                shutil.copyfileobj(source, target)
        self._fs.pipe_file(self._address(ref.uri, MANIFEST_FILE), data)

    def _manifest_bytes(self, ref: ArtifactRef) -> bytes:
        try:
            data: bytes = self._fs.cat_file(self._address(ref.uri, MANIFEST_FILE))
        except FileNotFoundError as error:
            raise NotReady(
                "ArtifactMissing",
                f"{ref.uri} is not in the artifact store: it was deleted, or HMI_ARTIFACTS names another "
                f"store; {RETRAIN_ADVICE}",
            ) from error
        return data

    @contextmanager
    def _reading(self, ref: ArtifactRef, path: str) -> Iterator[Iterable[bytes]]:
        with self._fs.open(self._address(ref.uri, path), "rb") as source:
            yield chunks(source)

    def _address(self, uri: str, name: str = "") -> str:
        return address_in(self._root, uri, name)
