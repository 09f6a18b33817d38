"""Artifacts of one small file, for tests that do not read their content."""

import tempfile
from pathlib import Path

from hmi_api.artifacts import ArtifactFile, ArtifactKind, ArtifactManifest, ArtifactRef
from hmi_api.internal.runs import ArtifactCommit
from hmi_api.internal.trainer_client import TrainerClient
from hmi_api.names import digest_bytes


def manifest_of(kind: ArtifactKind, content: bytes) -> str:
    """Return the manifest of an artifact with the file ``content.json``."""
    file = ArtifactFile(path="content.json", digest=digest_bytes(content), bytes=len(content))
    made = ArtifactManifest(kind=kind, base_digest="sha256:b", files=[file])
    return made.model_dump_json(by_alias=True)


def publish(trainer: TrainerClient, kind: ArtifactKind, content: bytes) -> ArtifactRef:
    """Upload a file and make an artifact of it."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        trainer.upload_file(digest_bytes(content), Path(file.name))
    ref = trainer.commit_artifact(ArtifactCommit(manifest=manifest_of(kind, content))).artifact
    assert ref is not None
    return ref
