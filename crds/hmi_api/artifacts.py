"""Artifacts: what a training run publishes, and how it is named.

An artifact is a folder in the artifact store: a ``manifest.json`` and the files it lists. It is named by
the SHA-256 of the manifest's bytes, and the manifest names the SHA-256 of every file, so one digest
covers all. Tensors are safetensors; nothing is ever pickled. This module has the types and the rules for
names; others read and write the bytes.
"""

from enum import StrEnum
from pathlib import PurePosixPath

from pydantic import Field

from hmi_api.internal.storable import DigestText, LargeCount, Text, WireModel

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1
_SUFFIXES = frozenset({".safetensors", ".json"})


class ArtifactKind(StrEnum):
    """What an artifact contains."""

    LAYERS = "Layers"  # a domain's window-local lower layers, gates, positions and bridge
    TABLE = "Table"  # a domain's PLOT: window keys and their values
    ADAPTER = "Adapter"  # a task's adapter and head


class ArtifactRef(WireModel):
    """Names a published artifact."""

    kind: ArtifactKind
    uri: Text = Field(description="Folder in the artifact store, relative to its root.")
    digest: DigestText = Field(description="sha256: of manifest.json's bytes.")
    bytes: LargeCount = Field(description="All files together.")


class ArtifactFile(WireModel):
    """One file of an artifact."""

    path: Text = Field(max_length=255)
    digest: DigestText
    bytes: LargeCount


class ArtifactManifest(WireModel):
    """``manifest.json``: what is inside and what it belongs to."""

    format_version: int = 1
    kind: ArtifactKind
    base_digest: str = Field(description="Digest of the base model's weights this was made for.")
    layers_digest: str | None = Field(
        default=None, description="Layers artifact a Table was made by or an Adapter was trained on."
    )
    files: list[ArtifactFile]
    config: dict[str, object] = Field(
        default_factory=dict, description="What the reader needs besides tensors; its schema is the kind's."
    )


def artifact_uri(kind: ArtifactKind, digest: str) -> str:
    """Return where the artifact with this manifest digest lies, relative to the store's root."""
    return f"{kind.value.lower()}/{digits_of(digest)}"


def digits_of(digest: str) -> str:
    """Return the hexadecimal digits of a ``sha256:`` digest."""
    return digest.removeprefix("sha256:")


def is_plain_path(name: str) -> bool:
    """Return whether ``name`` is a relative path inside its folder, other than the manifest's."""
    path = PurePosixPath(name)
    plain = bool(name) and path.as_posix() == name and "\\" not in name and "\0" not in name
    inside = not path.is_absolute() and not any(part in {"..", "."} for part in path.parts)
    return plain and inside and name != MANIFEST_FILE


def is_allowed_format(name: str) -> bool:
    """Return whether a file name ends in .safetensors or .json, the only formats of artifacts."""
    return PurePosixPath(name).suffix in _SUFFIXES
