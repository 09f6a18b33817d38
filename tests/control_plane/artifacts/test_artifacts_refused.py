"""Artifacts over HTTP: partial reads, refused uploads, and deletion of leftovers."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.errors import InvalidInput
from hmi_control_plane.artifact_files import ArtifactFiles
from hmi_control_plane.catalog.artifacts import ArtifactGarbageCollector
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import Artifact
from hmi_control_plane.settings import Settings

BASE = "sha256:" + "0" * 64
OPERATOR = "system:serviceaccount:hmi-system:hmi-operator"


def publish(store: Any, folder: Path, kind: ArtifactKind = ArtifactKind.LAYERS) -> ArtifactRef:
    ref: ArtifactRef = store.publish(kind, folder, base_digest=BASE)
    return ref


@pytest.mark.parametrize(
    ("wanted", "status", "body"),
    [
        ("bytes=0-3", 206, b'{"ro'),
        ("bytes=4-", 206, b'ws": 4}'),
        ("bytes=8-99", 206, b" 4}"),
        ("bytes=11-", 416, None),
        ("bytes=5-4", 416, None),
        ("bytes=0-1,3-4", 200, b'{"rows": 4}'),
        ("lines=1-2", 200, b'{"rows": 4}'),
    ],
)
def test_a_trainer_can_read_a_range_of_bytes(
    parties: dict[str, Any], run: str, content: Path, wanted: str, status: int, body: bytes | None
) -> None:
    ref = publish(parties["acme"].store(run), content)
    address = f"/artifacts/{run}/{ref.digest.removeprefix('sha256:')}/t.json"
    answer = parties["acme"].call("GET", address, headers={"Range": wanted})
    assert answer.status_code == status
    if body is not None:
        assert answer.content == body
    if status == 206:
        assert answer.headers["content-range"].endswith("/11")


@pytest.mark.parametrize("path", ["..%2f..%2fcatalog.db", "%2e%2e/secret.json", "t.pkl", "absent.json", ""])
def test_a_trainer_can_read_nothing_else(parties: dict[str, Any], run: str, content: Path, path: str) -> None:
    ref = publish(parties["acme"].store(run), content)
    digits = ref.digest.removeprefix("sha256:")
    assert parties["acme"].call("GET", f"/artifacts/{run}/{digits}/{path}").status_code == 404


def test_an_upload_with_a_wrong_digest_is_deleted(
    parties: dict[str, Any], run: str, settings: Settings
) -> None:
    answer = parties["acme"].call("PUT", f"/artifacts/{run}/files/{'0' * 64}", content=b"something")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "DigestMismatch")
    assert not list((Path(settings.artifacts) / ".uploads" / run).iterdir())


def test_an_artifact_that_is_too_large_is_refused(parties: dict[str, Any], run: str, tmp_path: Path) -> None:
    answer = parties["acme"].call("PUT", f"/artifacts/{run}/files/{'0' * 64}", content=b"x" * (2 << 20))
    assert answer.status_code == 413
    (tmp_path / "large").mkdir()
    save_file({"x": np.zeros(1 << 19, dtype=np.float32)}, tmp_path / "large" / "t.safetensors")
    with pytest.raises(InvalidInput, match="limit"):
        publish(parties["acme"].store(run), tmp_path / "large")


@pytest.mark.parametrize(
    "change",
    [
        {"files": []},
        {"files": [{"path": "../t.json", "digest": BASE, "bytes": 1}]},
        {"files": [{"path": "t.pkl", "digest": BASE, "bytes": 1}]},
        {"files": [{"path": "t.json", "digest": BASE, "bytes": 1}] * 2},
        {"formatVersion": 99},
        {"kind": "Pickle"},
    ],
)
def test_an_invalid_manifest_is_refused(parties: dict[str, Any], run: str, change: dict[str, Any]) -> None:
    file = {"path": "t.json", "digest": BASE, "bytes": 1}
    manifest = {"kind": "Layers", "baseDigest": BASE, "files": [file], **change}
    answer = parties["acme"].call("POST", f"/artifacts/{run}", json={"manifest": json.dumps(manifest)})
    assert answer.status_code == 400, answer.text


def test_artifacts_that_no_run_completes_are_deleted(
    parties: dict[str, Any], run: str, content: Path, settings: Settings
) -> None:
    ref = publish(parties["acme"].store(run), content)
    database = Database(settings.database_url)
    eraser = ArtifactGarbageCollector(database, settings.artifacts)
    assert eraser.collect() == 0  # the run may still complete
    assert parties["acme"].complete(run, ref).status_code == 200
    with database.read() as session:
        assert session.get_one(Artifact, ref.digest).orphaned_at is None
    parties["operator"].call("DELETE", "/domains/acme/trade")
    assert eraser.collect() == 1
    assert not (Path(settings.artifacts) / ref.uri).exists()
    database.close()


def test_incomplete_uploads_are_deleted_when_their_run_is_over(
    parties: dict[str, Any], operator: Any, run: str, settings: Settings
) -> None:
    digits = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"  # of b"foo"
    assert parties["acme"].call("PUT", f"/artifacts/{run}/files/{digits}", content=b"foo").status_code == 204
    files = ArtifactFiles(settings.artifacts)
    assert files.staged_runs() == {run}
    assert files.staged_bytes(run) == 3
    operator.call("POST", f"/runs/{run}/fail", json={"reason": "Why", "message": "So."})
    refused = parties["acme"].call("PUT", f"/artifacts/{run}/files/{digits}", content=b"foo")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "RunFinished")
    files.drop_uploads(run)
    assert files.staged_runs() == set()
    files.drop_uploads(run)


@pytest.mark.skipif(not hasattr(os, "statvfs"), reason="needs a POSIX file system")
def test_an_upload_that_is_cut_off_leaves_nothing(
    parties: dict[str, Any], run: str, settings: Settings
) -> None:
    def half() -> Iterator[bytes]:
        yield b"x" * 1000
        raise ConnectionError("the trainer died")

    with contextlib.suppress(ConnectionError):
        parties["acme"].call("PUT", f"/artifacts/{run}/files/{'0' * 64}", content=half())
    folder = Path(settings.artifacts) / ".uploads" / run
    until = time.monotonic() + 20
    while folder.exists() and list(folder.iterdir()):
        assert time.monotonic() < until
        time.sleep(0.02)
    shutil.rmtree(folder, ignore_errors=True)
