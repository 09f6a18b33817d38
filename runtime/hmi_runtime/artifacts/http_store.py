"""Artifacts through the control plane, for trainers, which have no access to the artifact store.

Files are uploaded by digest, and the commit makes them an artifact. Downloads are verified like any copy.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hmi_api.artifacts import MANIFEST_FILE, ArtifactManifest, ArtifactRef
from hmi_api.errors import InvalidInput, NotReady
from hmi_api.internal.runs import ArtifactCommit
from hmi_api.internal.trainer_client import TrainerClient
from hmi_runtime.artifacts.store import Store


class HttpArtifactStore(Store):
    """The artifacts that one run may read and write. Raises the errors of ``hmi_api.internal.client``."""

    def __init__(self, client: TrainerClient) -> None:
        super().__init__()
        self._client = client

    def _put(self, ref: ArtifactRef, manifest: ArtifactManifest, data: bytes, folder: Path) -> None:
        commit = ArtifactCommit(manifest=data.decode())
        files = {file.digest: folder / file.path for file in manifest.files}
        while (committed := self._client.commit_artifact(commit)).artifact is None:
            for digest in committed.missing:
                self._client.upload_file(digest, files[digest])
        if committed.artifact != ref:
            raise InvalidInput(
                "ArtifactRefused",
                f"The control plane published {committed.artifact.digest}, not {ref.digest}.",
            )

    def _manifest_bytes(self, ref: ArtifactRef) -> bytes:
        try:
            return self._client.read_file(ref, MANIFEST_FILE)
        except FileNotFoundError as error:
            raise NotReady(
                "ArtifactMissing",
                f"{ref.uri} does not exist for this run; wait until it is published, or publish it again.",
            ) from error

    @contextmanager
    def _reading(self, ref: ArtifactRef, path: str) -> Iterator[Iterable[bytes]]:
        yield self._client.stream_file(ref, path)
