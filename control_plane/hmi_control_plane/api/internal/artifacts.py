"""Artifacts over HTTP for training Jobs, which have no access to the artifact store.

A run uploads files by digest and commits a manifest that lists them; until then they are not visible. It can
read the artifacts that it uses (layers and tables of its Domain or parent) and those that it has published.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from hmi_api.artifacts import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    ArtifactManifest,
    ArtifactRef,
    artifact_uri,
    is_allowed_format,
    is_plain_path,
)
from hmi_api.errors import InvalidInput, NotReady
from hmi_api.internal.runs import ArtifactCommit, ArtifactCommitted
from hmi_api.security.internal_auth import Caller, Role
from hmi_control_plane.api import NO_CONTENT
from hmi_control_plane.api.internal.runs import run_of
from hmi_control_plane.artifact_files import ArtifactFiles
from hmi_control_plane.auth.guards import AdmittedCaller, RoleGuard
from hmi_control_plane.catalog import artifacts, runs
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.http.errors import NotFound
from hmi_control_plane.http.parameters import RunId

Digits = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="A SHA-256, hexadecimal.")]

_WRITTEN_AT_ONCE = 1 << 20
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


def build(database: Database, guard: RoleGuard, files: ArtifactFiles, *, limit_bytes: int) -> APIRouter:
    """Return the routes under ``/artifacts``; an artifact takes ``limit_bytes`` at most."""
    router = APIRouter(prefix="/artifacts", route_class=guard.only(Role.TRAINER))

    @router.put("/{run_id}/files/{digits}", **NO_CONTENT)
    async def upload_file(run_id: RunId, digits: Digits, caller: AdmittedCaller, request: Request) -> None:
        """Upload a file's bytes, which must hash to the digest; 413 when the run has uploaded too much."""
        await run_in_threadpool(_require_open, database, run_id, caller)
        room = limit_bytes - await run_in_threadpool(files.staged_bytes, run_id)
        await _take(request, files, run_id, digits, room)

    @router.post("/{run_id}")
    def commit(run_id: RunId, body: ArtifactCommit, caller: AdmittedCaller) -> ArtifactCommitted:
        """Make uploaded files an artifact, or say which are missing; the same again changes nothing."""
        namespace = _require_open(database, run_id, caller)
        data = body.manifest.encode()
        manifest = _read_manifest(data)
        ref = _reference(manifest, data)
        if ref.bytes > limit_bytes:
            raise HTTPException(413, f"The artifact has {ref.bytes} bytes; the limit is {limit_bytes}.")
        with database.read() as session:
            is_published_here = runs.was_published_in(session, namespace, ref.digest)
        if not (is_published_here and files.is_stored(ref, manifest, data)):
            missing = files.missing(run_id, manifest.files)
            if missing:
                return ArtifactCommitted(missing=missing)
        # The pending record keeps the garbage collector away while the files are written.
        with database.write() as session:
            artifacts.record_pending(session, ref)
        if not (is_published_here and files.is_stored(ref, manifest, data)):
            _store(files, run_id, ref, manifest, data)
        with database.write() as session:
            runs.record_published(session, run_of(session, run_id, caller), ref.digest)
        return ArtifactCommitted(artifact=ref)

    @router.get("/{run_id}/{digits}/{path:path}")
    def read_file(
        run_id: RunId, digits: Digits, path: str, caller: AdmittedCaller, request: Request
    ) -> Response:
        """Read a file of an artifact that the run names; one Range of bytes is understood."""
        if path != MANIFEST_FILE and not (is_plain_path(path) and is_allowed_format(path)):
            raise NotFound("ArtifactMissing", f"{path!r} is no file of an artifact.")
        with database.read() as session:
            ref = runs.get_readable_artifact(session, run_of(session, run_id, caller), f"sha256:{digits}")
        size = files.size(ref.uri, path)
        return _ranged(request.headers.get("range"), size, partial(files.read, ref.uri, path))

    return router


def _require_open(database: Database, run_id: str, caller: Caller) -> str:
    """Return the namespace of a run that may still publish, and that the caller may work on."""
    with database.read() as session:
        run = run_of(session, run_id, caller)
        runs.require_open(run)
        return run.namespace


async def _take(request: Request, files: ArtifactFiles, run_id: str, digits: str, room: int) -> None:
    """Write a body to an upload as it arrives; the upload is dropped unless all of it did."""
    upload = await run_in_threadpool(files.upload, run_id, digits)
    try:
        waiting = bytearray()
        async for piece in request.stream():
            room -= len(piece)
            if room < 0:
                raise HTTPException(413, "The run has uploaded more than an artifact may contain.")
            waiting += piece
            if len(waiting) >= _WRITTEN_AT_ONCE:
                await run_in_threadpool(upload.write, bytes(waiting))
                waiting.clear()
        await run_in_threadpool(upload.write, bytes(waiting))
    except (ClientDisconnect, HTTPException, OSError):
        await run_in_threadpool(upload.discard)
        raise
    await run_in_threadpool(upload.finish)


def _read_manifest(data: bytes) -> ArtifactManifest:
    """Parse a manifest; raises InvalidInput (ManifestInvalid, PathOutsideArtifact, NotSafetensors)."""
    try:
        manifest = ArtifactManifest.model_validate_json(data)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise InvalidInput("ManifestInvalid", f"This is not an artifact manifest (see {where}).") from error
    if manifest.format_version > FORMAT_VERSION or not manifest.files:
        raise InvalidInput("ManifestInvalid", "The manifest has no files, or a format that is too new.")
    paths = [file.path for file in manifest.files]
    for path in paths:
        if not is_plain_path(path):
            raise InvalidInput("PathOutsideArtifact", f"{path!r} is no plain path inside an artifact.")
        if not is_allowed_format(path):
            raise InvalidInput("NotSafetensors", f"{path!r} is neither .safetensors nor .json.")
    if len(set(paths)) < len(paths):
        raise InvalidInput("ManifestInvalid", "The manifest names a file twice.")
    return manifest


def _reference(manifest: ArtifactManifest, data: bytes) -> ArtifactRef:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return ArtifactRef(
        kind=manifest.kind,
        uri=artifact_uri(manifest.kind, digest),
        digest=digest,
        bytes=sum(file.bytes for file in manifest.files) + len(data),
    )


def _store(
    files: ArtifactFiles, run_id: str, ref: ArtifactRef, manifest: ArtifactManifest, data: bytes
) -> None:
    try:
        files.place(run_id, ref, manifest, data)
    except FileNotFoundError as error:
        raise NotReady(
            "CommitUnderWay", "Another request is committing the same files; try again."
        ) from error


def _ranged(wanted: str | None, size: int, read: Callable[[int, int], Iterator[bytes]]) -> Response:
    """Return the whole of a file, or the requested range of bytes."""
    headers = {"Accept-Ranges": "bytes", "Content-Length": str(size)}
    match = _RANGE.fullmatch(wanted or "")
    if match is None:
        return StreamingResponse(read(0, size), headers=headers, media_type="application/octet-stream")
    start, end = int(match[1]), min(int(match[2] or size), size - 1)
    if start >= size or end < start:
        raise HTTPException(416, "There are no such bytes.", headers={"Content-Range": f"bytes */{size}"})
    length = end - start + 1
    headers |= {"Content-Length": str(length), "Content-Range": f"bytes {start}-{end}/{size}"}
    return StreamingResponse(read(start, length), 206, headers=headers, media_type="application/octet-stream")
