"""Verification of an artifact's files: digests, sizes, names and formats.

A manifest is parsed only after its digest matched the reference, and a file is used only after it matched the
manifest, so altered bytes are never parsed.
"""

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
from hmi_api.names import RETRAIN_ANNOTATION, digest_bytes, digest_file

RETRAIN_ADVICE = f"give the annotation {RETRAIN_ANNOTATION} a new value to train it again."
"""The end of an error message about an artifact that is missing or altered."""
_CHUNK_BYTES = 1 << 20
# The safetensors library refuses longer headers too.
_LONGEST_HEADER_BYTES = 100_000_000


def chunks(source: BinaryIO) -> Iterator[bytes]:
    """Yield the rest of ``source`` in pieces of 1 MiB."""
    while piece := source.read(_CHUNK_BYTES):
        yield piece


def describe_folder(folder: Path) -> list[ArtifactFile]:
    """Return the files of ``folder``, sorted by path, each with its digest and size.

    Raises ``InvalidInput`` NotSafetensors for a file of another format and ArtifactEmpty for no files.
    """
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    if not found:
        raise InvalidInput("ArtifactEmpty", f"{folder} has no files to publish; write them first.")
    files = []
    for path in found:
        name = path.relative_to(folder).as_posix()
        check_format(name, path)
        size, digest = _measure(path)
        files.append(ArtifactFile(path=name, digest=digest, bytes=size))
    return files


def _measure(path: Path) -> tuple[int, str]:
    """Return a file's size and digest."""
    with path.open("rb") as source:
        return path.stat().st_size, digest_file(source)


def manifest_bytes(manifest: ArtifactManifest) -> bytes:
    """Return the one canonical encoding of a manifest, whose digest names the artifact."""
    content = manifest.model_dump(mode="json", by_alias=True)
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def read_manifest(data: bytes, ref: ArtifactRef) -> ArtifactManifest:
    """Parse ``manifest.json`` after checking that it is the one that ``ref`` names.

    Raises ``Damaged`` DigestMismatch or ManifestInvalid, ``InvalidInput`` FormatTooNew, NotSafetensors or
    PathOutsideArtifact.
    """
    found = digest_bytes(data)
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
        raise Damaged("ManifestInvalid", f"{ref.uri} is of kind {manifest.kind}, not {ref.kind}.")
    for file in manifest.files:
        check_path(file.path)
        check_suffix(file.path)
    return manifest


def check_path(name: str) -> None:
    """Raise ``InvalidInput`` PathOutsideArtifact unless ``name`` is a plain path below its folder."""
    if not is_plain_path(name):
        raise InvalidInput(
            "PathOutsideArtifact",
            f"The manifest names the file {name!r}, which is no plain path inside the artifact or is "
            f"{MANIFEST_FILE} itself; do not use this artifact, whoever made it cannot be trusted.",
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
    """Raise ``InvalidInput`` NotSafetensors unless the file at ``path`` has the format that ``name`` says."""
    check_path(name)
    check_suffix(name)
    if PurePosixPath(name).suffix == ".safetensors" and not _has_safetensors_header(path):
        raise InvalidInput(
            "NotSafetensors",
            f"{name} is not a safetensors file, whatever its name; save the weights with safetensors.",
        )


def _has_safetensors_header(path: Path) -> bool:
    """Return whether the file starts with the length of a JSON header and that header."""
    with path.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        if not 2 <= length <= min(_LONGEST_HEADER_BYTES, path.stat().st_size - 8):
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
    check_measured(file, *_measure(path), uri)
    check_format(file.path, path)


def check_measured(file: ArtifactFile, size: int, digest: str, uri: str) -> None:
    """Compare the size and digest of a copy with those of ``file``."""
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
