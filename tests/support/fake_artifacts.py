"""The artifacts of the fake control plane: uploads of runs, and the artifacts made of them."""

from small_artifacts import manifest_of

from hmi_api.artifacts import (
    MANIFEST_FILE,
    ArtifactKind,
    ArtifactManifest,
    ArtifactRef,
    artifact_uri,
    digits_of,
)
from hmi_api.internal.client import Refused
from hmi_api.internal.runs import ArtifactCommitted
from hmi_api.names import digest_bytes


class FakeArtifacts:
    """``files`` has the files of each artifact by path, by the artifact's digest."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self._uploads: dict[str, dict[str, bytes]] = {}
        self._published: dict[str, set[str]] = {}

    def upload(self, run_id: str, digits: str, content: bytes) -> None:
        """Keep a file of a run until an artifact is made of it."""
        if digits_of(digest_bytes(content)) != digits:
            raise Refused(400, "DigestMismatch", "The body has another SHA-256; upload the file again.")
        self._uploads.setdefault(run_id, {})[f"sha256:{digits}"] = content

    def commit(self, run_id: str, manifest: str) -> ArtifactCommitted:
        """Make an artifact of uploaded files, or return which are missing."""
        read = ArtifactManifest.model_validate_json(manifest)
        digest = digest_bytes(manifest.encode())
        published = self._published.setdefault(run_id, set())
        if digest not in published:
            uploads = self._uploads.get(run_id, {})
            missing = [file.digest for file in read.files if file.digest not in uploads]
            if missing:
                return ArtifactCommitted(missing=list(dict.fromkeys(missing)))
            files = {file.path: uploads[file.digest] for file in read.files}
            self.files[digest] = files | {MANIFEST_FILE: manifest.encode()}
            published.add(digest)
        return ArtifactCommitted(artifact=_reference(read, manifest))

    def read(self, run_id: str, used: set[str], digits: str, path: str) -> bytes:
        """Return a file of an artifact that a run has published or is one of the ``used`` digests."""
        digest = f"sha256:{digits}"
        if digest not in used | self._published.get(run_id, set()):
            raise Refused(404, "ArtifactNotNamed", f"Run {run_id} names no artifact {digest}.")
        if path not in self.files.get(digest, {}):
            raise Refused(404, "ArtifactMissing", f"{path} is not in the artifact store.")
        return self.files[digest][path]

    def store(self, kind: ArtifactKind, content: bytes) -> ArtifactRef:
        """Make an artifact of one file, without a run."""
        manifest = manifest_of(kind, content)
        ref = _reference(ArtifactManifest.model_validate_json(manifest), manifest)
        self.files[ref.digest] = {"content.json": content, MANIFEST_FILE: manifest.encode()}
        return ref


def _reference(manifest: ArtifactManifest, text: str) -> ArtifactRef:
    digest = digest_bytes(text.encode())
    size = sum(file.bytes for file in manifest.files) + len(text.encode())
    return ArtifactRef(kind=manifest.kind, uri=artifact_uri(manifest.kind, digest), digest=digest, bytes=size)
