"""Publishing and fetching artifacts over fsspec: a local folder, memory, or an S3-compatible store."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hmi_api.artifact_root import address_in, is_local, is_stored, open_root
from hmi_api.artifacts import MANIFEST_FILE, ArtifactManifest, ArtifactRef
from hmi_api.errors import InvalidInput, NotReady
from hmi_runtime.artifacts.base import Store, manifest_of_copy, write_pieces
from hmi_runtime.artifacts.folders import (
    fsync_path,
    fsync_tree,
    move_into_place,
    partial_folder,
    remove_folder,
)
from hmi_runtime.artifacts.verification import MEND, check_measured, check_path, chunks

__all__ = ["ArtifactStore", "manifest_of_copy"]


class ArtifactStore(Store):
    """The store at an fsspec address, which this process reaches by itself."""

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
        # No manifest: an upload or a delete that never finished; the other files may still be there.
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
            fsync_tree(partial)  # so that after a power cut the name never leads to less than all of it
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
                f"{ref.uri} is not in the artifact store: it was removed there, or another store is read; "
                f"{MEND}",
            ) from error
        return data

    @contextmanager
    def _reading(self, ref: ArtifactRef, path: str) -> Iterator[Iterable[bytes]]:
        with self._fs.open(self._address(ref.uri, path), "rb") as source:
            yield chunks(source)

    def _address(self, uri: str, name: str = "") -> str:
        return address_in(self._root, uri, name)
