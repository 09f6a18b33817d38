"""Verification of an artifact's files: digests, sizes, names and formats.

A manifest is parsed only after its digest matched the reference, and a file is used only after it matched the
manifest, so altered bytes are never parsed.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pydantic import ValidationError

from hmi_api.artifacts import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    ArtifactFile,
    ArtifactManifest,
    ArtifactRef,
    is_allowed_format,
    is_plain_path,
)
from hmi_api.errors import Damaged, InvalidInput
from hmi_api.names import RETRAIN_ANNOTATION

RETRAIN_ADVICE = (
    f"give the annotation {RETRAIN_ANNOTATION} a new value, and what is trained again is written anew."
)
"""The end of an error message about an artifact that is not what was published."""
_CHUNK_BYTES = 1 << 20
# The safetensors library refuses longer headers too.
_LONGEST_HEADER_BYTES = 100_000_000


def digest_of(data: bytes) -> str:
    """Return ``sha256:`` and the hexadecimal digest of ``data``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def chunks(source: BinaryIO) -> Iterator[bytes]:
    """Yield what is left of ``source`` in pieces of a bounded size."""
    while piece := source.read(_CHUNK_BYTES):
        yield piece


def digest_of_file(path: Path) -> str:
    """Return the digest of a file's bytes, reading it in pieces."""
    running = hashlib.sha256()
    with path.open("rb") as source:
        for piece in chunks(source):
            running.update(piece)
    return f"sha256:{running.hexdigest()}"


def describe_folder(folder: Path) -> list[ArtifactFile]:
    """Return the files of ``folder``, sorted by path, each with its digest and size.

    Raises ``InvalidInput`` NotSafetensors for a file of another format and ArtifactEmpty for no files.
    """
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    if not found:
        raise InvalidInput("ArtifactEmpty", f"{folder} holds no files to publish; write them first.")
    return [_describe_file(folder, path) for path in found]


def _describe_file(folder: Path, path: Path) -> ArtifactFile:
    name = path.relative_to(folder).as_posix()
    check_format(name, path)
    return ArtifactFile(path=name, digest=digest_of_file(path), bytes=path.stat().st_size)


def manifest_bytes(manifest: ArtifactManifest) -> bytes:
    """Return the one canonical encoding of a manifest, whose digest names the artifact."""
    content = manifest.model_dump(mode="json", by_alias=True)
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def read_manifest(data: bytes, ref: ArtifactRef) -> ArtifactManifest:
    """Parse ``manifest.json`` after checking that it is the one that ``ref`` names.

    Raises ``Damaged`` DigestMismatch or ManifestInvalid, ``InvalidInput`` FormatTooNew, NotSafetensors or
    PathOutsideArtifact.
    """
    found = digest_of(data)
    if found != ref.digest:
        raise Damaged(
            "DigestMismatch",
            f"{ref.uri}/{MANIFEST_FILE} has digest {found}, not {ref.digest}; "
            f"the stored bytes were altered: {RETRAIN_ADVICE}",
        )
    try:
        manifest = ArtifactManifest.model_validate_json(data)
    except ValidationError as error:
        raise Damaged(
            "ManifestInvalid", f"{ref.uri}/{MANIFEST_FILE} is no artifact manifest: {error}"
        ) from error
    if manifest.format_version > FORMAT_VERSION:
        raise InvalidInput(
            "FormatTooNew",
            f"{ref.uri} has format {manifest.format_version} and this program reads up to {FORMAT_VERSION}; "
            "upgrade it.",
        )
    if manifest.kind is not ref.kind:
        raise Damaged("ManifestInvalid", f"{ref.uri} holds {manifest.kind}, where {ref.kind} was asked for.")
    for file in manifest.files:
        check_path(file.path)
        check_suffix(file.path)
    return manifest


def check_path(name: str) -> None:
    """Raise ``InvalidInput`` PathOutsideArtifact unless ``name`` is a plain path below its folder."""
    if not is_plain_path(name):
        raise InvalidInput(
            "PathOutsideArtifact",
            f"The manifest names the file {name!r}, which is no plain path inside the artifact and is not "
            f"{MANIFEST_FILE}; do not use this artifact, its maker is not to be trusted.",
        )


def check_suffix(name: str) -> None:
    """Raise ``InvalidInput`` NotSafetensors unless the file's name says safetensors or JSON."""
    if not is_allowed_format(name):
        raise InvalidInput(
            "NotSafetensors",
            f"{name} is neither .safetensors nor .json; convert the weights to safetensors "
            "(pickles can run code and are never read).",
        )


def check_format(name: str, path: Path) -> None:
    """Raise ``InvalidInput`` NotSafetensors unless the file at ``path`` looks like what ``name`` says."""
    check_path(name)
    check_suffix(name)
    if PurePosixPath(name).suffix == ".safetensors" and not _has_safetensors_header(path):
        raise InvalidInput(
            "NotSafetensors",
            f"{name} is no safetensors file in spite of its name; save the weights with safetensors.",
        )


def _has_safetensors_header(path: Path) -> bool:
    """Whether the file starts with a header's length and a header of JSON, as safetensors lays down."""
    with path.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        fits = 2 <= length <= min(_LONGEST_HEADER_BYTES, path.stat().st_size - 8)
        if not fits:
            return False
        try:
            return isinstance(json.loads(source.read(length)), dict)
        except ValueError:
            return False


def check_file(file: ArtifactFile, path: Path, uri: str) -> None:
    """Check a copy of an artifact's file against its manifest: size, then digest, then format.

    Raises ``Damaged`` ArtifactMissing, ArtifactTruncated or DigestMismatch, ``InvalidInput``
    NotSafetensors.
    """
    if not path.is_file():
        raise missing_file(file, uri)
    check_measured(file, path.stat().st_size, digest_of_file(path), uri)
    check_format(file.path, path)


def check_measured(file: ArtifactFile, size: int, digest: str, uri: str) -> None:
    """Check a size and digest that were taken of a copy of ``file``."""
    if size < file.bytes:
        raise Damaged(
            "ArtifactTruncated",
            f"{uri}/{file.path} has {size} of {file.bytes} bytes: {RETRAIN_ADVICE}",
        )
    if size != file.bytes or digest != file.digest:
        raise Damaged(
            "DigestMismatch",
            f"{uri}/{file.path} is not what was published (digest {digest}, "
            f"expected {file.digest}): {RETRAIN_ADVICE}",
        )


def missing_file(file: ArtifactFile, uri: str) -> Damaged:
    """Return the error for a file that the manifest lists and the store does not have."""
    return Damaged("ArtifactMissing", f"{uri}/{file.path} is not in the store: {RETRAIN_ADVICE}")
