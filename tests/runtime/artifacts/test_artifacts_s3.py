"""The artifact store on a real S3 server, versitygw, if it is installed."""

import hashlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from safetensors.numpy import save_file
from serving import free_port

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.errors import Damaged, NotReady
from hmi_control_plane.artifact_files import ArtifactFiles
from hmi_control_plane.catalog import artifacts
from hmi_control_plane.catalog.database import Database
from hmi_runtime.artifacts.store import ArtifactStore

BASE = "sha256:" + "0" * 64
RUN = "0123456789ab"
LIMIT = 60.0


def _versitygw() -> str | None:
    """Return the server's program: on PATH, in KUBEBUILDER_ASSETS, or in the folder of a cluster nearby."""
    folders = [os.environ.get("KUBEBUILDER_ASSETS", ""), os.environ.get("PATH", "")]
    cluster = Path(__file__).parents[4] / "shared" / "kube" / "cluster"
    if cluster.is_file() and not shutil.which("versitygw", path=os.pathsep.join(folders)):
        listed = subprocess.run([cluster, "assets"], capture_output=True, text=True, check=False)
        folders += listed.stdout.split()[-1:]
    return shutil.which("versitygw", path=os.pathsep.join(folders))


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server."""
    program = _versitygw()
    if program is None:
        pytest.skip(
            "no S3 server: put versitygw on PATH (https://github.com/versity/versitygw/releases) to run this"
        )
    folder = tmp_path_factory.mktemp("s3")
    (folder / "hmi").mkdir()  # the bucket
    port = free_port()
    with (folder.parent / "s3.log").open("wb") as log:
        server = subprocess.Popen(
            [program, "-p", f"127.0.0.1:{port}", "posix", "--nometa", folder],
            env={**os.environ, "ROOT_ACCESS_KEY": "key", "ROOT_SECRET_KEY": "secret"},
            stdout=log,
            stderr=log,
        )
    until = time.monotonic() + LIMIT
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert server.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.fixture
def root(s3: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A store's address; endpoint and credentials come from the environment, as in a pod."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    return f"s3://hmi/{request.node.name}"


@pytest.fixture
def content(tmp_path: Path) -> Path:
    folder = tmp_path / "content"
    folder.mkdir()
    save_file({"values": np.arange(3_000_000, dtype=np.float32)}, folder / "t.safetensors")  # several parts
    (folder / "t.json").write_text('{"rows": 4}')
    return folder


def publish(store: ArtifactStore, folder: Path) -> ArtifactRef:
    return store.publish(ArtifactKind.TABLE, folder, base_digest=BASE)


def test_a_fetched_artifact_equals_the_published_one(root: str, content: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:  # at once, as runs with the same content may
        refs = set(pool.map(lambda _: publish(ArtifactStore(root), content), range(3)))
    (ref,) = refs
    copy = ArtifactStore(root).fetch(ref, tmp_path / "cache")
    for path in ("t.safetensors", "t.json"):
        assert (copy / path).read_bytes() == (content / path).read_bytes()


def test_an_artifact_is_visible_completely_or_not_at_all(root: str, content: Path, tmp_path: Path) -> None:
    reader, cut_off = ArtifactStore(root), ArtifactStore(root)
    ref = publish(ArtifactStore(str(tmp_path / "elsewhere")), content)
    with pytest.raises(NotReady, match="ArtifactMissing"):
        reader.fetch(ref, tmp_path / "cache")
    filesystem, path = fsspec.url_to_fs(root)

    def lost(_address: str, _data: bytes) -> None:
        raise ConnectionError("the writer was killed before its manifest")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            cut_off, "_fs", filesystem.__class__(use_listings_cache=False, skip_instance_cache=True)
        )
        patch.setattr(cut_off._fs, "pipe_file", lost)
        with pytest.raises(ConnectionError):
            publish(cut_off, content)
    assert filesystem.exists(f"{path}/{ref.uri}/t.safetensors")
    with pytest.raises(NotReady, match="ArtifactMissing"):
        reader.fetch(ref, tmp_path / "cache")
    assert publish(ArtifactStore(root), content) == ref
    assert reader.fetch(ref, tmp_path / "cache").is_dir()


def test_an_altered_artifact_is_refused(root: str, content: Path, tmp_path: Path) -> None:
    store = ArtifactStore(root)
    ref = publish(store, content)
    filesystem, path = fsspec.url_to_fs(root)
    filesystem.pipe_file(f"{path}/{ref.uri}/t.json", b'{"rows": 5}')
    with pytest.raises(Damaged, match="DigestMismatch"):
        store.fetch(ref, tmp_path / "cache")


def test_uploads_become_an_artifact_with_their_manifest(root: str, content: Path, tmp_path: Path) -> None:
    """The control plane's part for training Jobs, on the same store."""
    elsewhere = ArtifactStore(str(tmp_path / "elsewhere"))
    ref = publish(elsewhere, content)
    manifest = elsewhere.manifest(ref)
    data = (tmp_path / "elsewhere" / ref.uri / "manifest.json").read_bytes()
    files = ArtifactFiles(root)
    assert len(files.missing(RUN, manifest.files)) == 2
    for file in manifest.files:
        upload = files.upload(RUN, file.digest.removeprefix("sha256:"))
        upload.write((content / file.path).read_bytes())
        upload.finish()
    assert files.missing(RUN, manifest.files) == []
    assert files.staged_runs() == {RUN}
    with pytest.raises(NotReady, match="ArtifactMissing"):
        ArtifactStore(root).fetch(ref, tmp_path / "cache")
    files.place(RUN, ref, manifest, data)
    assert files.is_stored(ref, manifest, data)
    assert files.staged_bytes(RUN) == 0
    assert b"".join(files.read(ref.uri, "t.json", 1, 6)) == b'"rows"'
    assert ArtifactStore(root).fetch(ref, tmp_path / "cache").is_dir()
    ArtifactStore(root).delete(ref)
    with pytest.raises(NotReady, match="ArtifactMissing"):
        ArtifactStore(root).manifest(ref)


def test_an_unneeded_artifact_is_deleted_completely(root: str, content: Path, sqlite_url: str) -> None:
    ref = publish(ArtifactStore(root), content)
    files = ArtifactFiles(root)
    upload = files.upload(RUN, hashlib.sha256(b"never committed").hexdigest())
    upload.write(b"never committed")
    upload.finish()
    filesystem, path = fsspec.url_to_fs(root, use_listings_cache=False)
    assert len(filesystem.find(path)) == 4, "a manifest, two files and the upload"
    database = Database(sqlite_url)
    with database.write() as session:
        artifacts.record(session, [ref])  # no version uses it
    eraser = artifacts.ArtifactGarbageCollector(database, root)
    assert [eraser.collect(), eraser.collect()] == [1, 0]
    files.drop_uploads(RUN)
    assert filesystem.find(path) == []
    files.drop_uploads(RUN)
    eraser.remove_folder(ref.uri)
    database.close()
