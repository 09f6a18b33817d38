"""The files of the artifact store: uploads, their commit and reading, over fsspec.

An upload is stored under ``.uploads/{run}/{sha256}`` and not visible. A commit moves the files to the
artifact's folder and writes the manifest last: a folder without a manifest is not an artifact.
"""

import hashlib
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from hmi_api.artifact_root import address_in, is_local, is_stored, open_root
from hmi_api.artifacts import MANIFEST_FILE, ArtifactFile, ArtifactManifest, ArtifactRef, digits_of
from hmi_api.errors import InvalidInput
from hmi_api.names import digest_bytes
from hmi_control_plane.http.errors import NotFound

UPLOADS = ".uploads"
_CHUNK_BYTES = 1 << 20


class Upload:
    """One file being uploaded, under a temporary name until its digest is checked."""

    def __init__(self, files: "ArtifactFiles", run_id: str, digest: str) -> None:
        self._files = files
        self._run_id = run_id
        self._digest = digest
        self._part = files.staged(run_id, f"{digest}.{uuid.uuid4().hex}")
        self._running = hashlib.sha256()
        self._file: Any = files.create(self._part)

    def write(self, data: bytes) -> None:
        """Add to the file."""
        self._running.update(data)
        self._file.write(data)

    def finish(self) -> None:
        """Keep the file; if its digest differs, delete it and raise InvalidInput (DigestMismatch)."""
        found = self._running.hexdigest()
        if found != self._digest:
            self.discard()
            raise InvalidInput(
                "DigestMismatch", f"The body has SHA-256 {found}, not {self._digest}; upload the file again."
            )
        self._files.close(self._file)
        self._files.move(self._part, self._files.staged(self._run_id, self._digest))

    def discard(self) -> None:
        """Delete what was uploaded."""
        self._file.close()
        self._files.remove(self._part)


class ArtifactFiles:
    """The files below the store's ``root``, an fsspec address. Blocking; safe to share between threads."""

    def __init__(self, root: str) -> None:
        self._fs, self._root = open_root(root)

    # --- uploads ------------------------------------------------------------------------------------

    def upload(self, run_id: str, digest: str) -> Upload:
        """Start the upload of a file with SHA-256 ``digest``, 64 hexadecimal digits."""
        return Upload(self, run_id, digest)

    def staged_bytes(self, run_id: str) -> int:
        """Return the bytes that a run has uploaded and not committed."""
        return int(sum(self._sizes(self._address(UPLOADS, run_id)).values()))

    def missing(self, run_id: str, files: Sequence[ArtifactFile]) -> list[str]:
        """Return the digests of ``files`` that a run has not uploaded, each once."""
        sizes = self._sizes(self._address(UPLOADS, run_id))
        absent = [file.digest for file in files if sizes.get(digits_of(file.digest)) != file.bytes]
        return list(dict.fromkeys(absent))

    def staged_runs(self) -> set[str]:
        """Return the ids of runs that have uploads."""
        folder = self._address(UPLOADS)
        with suppress(FileNotFoundError):
            return {str(entry).rstrip("/").rpartition("/")[2] for entry in self._fs.ls(folder, detail=False)}
        return set()

    def drop_uploads(self, run_id: str) -> None:
        """Delete what a run has uploaded and not committed."""
        with suppress(FileNotFoundError):
            self._fs.rm(self._address(UPLOADS, run_id), recursive=True)

    # --- artifacts ----------------------------------------------------------------------------------

    def is_stored(self, ref: ArtifactRef, manifest: ArtifactManifest, data: bytes) -> bool:
        """Return whether an artifact is complete, with every file in its full size."""
        return is_stored(self._fs, self._root, ref, manifest, data)

    def is_whole(self, ref: ArtifactRef) -> bool:
        """Return whether a published artifact still exists, with every file in its full size.

        The files themselves are not read: their digests are checked when they are loaded.
        """
        try:
            data: bytes = self._fs.cat_file(self._address(ref.uri, MANIFEST_FILE))
            if digest_bytes(data) != ref.digest:
                return False
            files = ArtifactManifest.model_validate_json(data).files
            return all(self._fs.size(self._address(ref.uri, file.path)) == file.bytes for file in files)
        except (FileNotFoundError, ValidationError):
            return False

    def place(self, run_id: str, ref: ArtifactRef, manifest: ArtifactManifest, data: bytes) -> None:
        """Move uploaded files to the artifact's folder; the manifest is written last, in one step."""
        left = [file.digest for file in manifest.files]
        for file in manifest.files:
            left.remove(file.digest)
            source = self.staged(run_id, digits_of(file.digest))
            target = self._address(ref.uri, file.path)
            if file.digest in left:
                self._make_folder_of(target)
                self._fs.cp_file(source, target)
            else:
                self.move(source, target)
        part = self.staged(run_id, f"{digits_of(ref.digest)}.{uuid.uuid4().hex}")
        written = self.create(part)
        written.write(data)
        self.close(written)
        self.move(part, self._address(ref.uri, MANIFEST_FILE))

    def size(self, uri: str, path: str) -> int:
        """Return the bytes of a file of an artifact; raises NotFound (ArtifactMissing)."""
        try:
            return int(self._fs.size(self._address(uri, path)))
        except FileNotFoundError as error:
            raise NotFound("ArtifactMissing", f"{uri}/{path} is not in the artifact store.") from error

    def read(self, uri: str, path: str, start: int, length: int) -> Iterator[bytes]:
        """Yield ``length`` bytes of a file from ``start`` on, in pieces of a bounded size."""
        with self._fs.open(self._address(uri, path), "rb") as source:
            source.seek(start)
            while length > 0 and (piece := source.read(min(_CHUNK_BYTES, length))):
                length -= len(piece)
                yield piece

    # --- what an upload needs -----------------------------------------------------------------------

    def staged(self, run_id: str, name: str) -> str:
        """Return the path of an upload of a run."""
        return self._address(UPLOADS, run_id, name)

    def create(self, path: str) -> Any:
        """Open a new file for writing."""
        self._make_folder_of(path)
        return self._fs.open(path, "wb")

    def close(self, file: Any) -> None:
        """Sync a written file to disk and close it."""
        if is_local(self._fs):
            file.flush()
            os.fsync(file.fileno())
        file.close()

    def move(self, source: str, target: str) -> None:
        """Rename a file; atomic on a disk and in an object store."""
        self._make_folder_of(target)
        self._fs.mv(source, target)

    def remove(self, path: str) -> None:
        """Remove a file; absent is fine."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def _make_folder_of(self, path: str) -> None:
        if is_local(self._fs):
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _sizes(self, folder: str) -> dict[str, int]:
        """Return the sizes of the files directly in ``folder``, by name."""
        with suppress(FileNotFoundError):
            entries = self._fs.ls(folder, detail=True)
            return {str(entry["name"]).rpartition("/")[2]: int(entry["size"]) for entry in entries}
        return {}

    def _address(self, *parts: str) -> str:
        return address_in(self._root, *parts)
