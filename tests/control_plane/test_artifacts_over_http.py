"""Artifacts of training Jobs: from their own client through the control plane into the store, and back."""

import contextlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from safetensors.numpy import save_file

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.callers import ServiceAccounts
from hmi_api.errors import InvalidInput, NotReady
from hmi_control_plane.app import create_app
from hmi_control_plane.artifact_files import ArtifactFiles
from hmi_control_plane.catalog.artifacts import ArtifactEraser
from hmi_control_plane.settings import Part, Settings
from hmi_control_plane.storage import Artifact, Database
from hmi_runtime.artifacts import ArtifactStore, HttpArtifactStore

BASE = "sha256:" + "0" * 64
OPERATOR = "system:serviceaccount:hmi-system:hmi-operator"


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """SQLite alone: the few statements here are tested on both where they are shared."""
    return sqlite_url


@pytest.fixture
def plane(settings: Settings, token_reviews: Any, tmp_path: Path) -> Iterator[str]:
    """The address of a control plane that serves trainers of acme and bolt over real HTTP."""
    own = tmp_path / "token"
    own.write_text("own-token")
    token_reviews.accounts |= {"operator": OPERATOR}
    token_reviews.accounts |= {name: f"system:serviceaccount:{name}:default" for name in ("acme", "bolt")}
    told = settings.model_copy(
        update={
            "internal_token": None,
            "token_review": True,
            "roles": ServiceAccounts(operator=OPERATOR),
            "kubernetes_url": token_reviews.url,
            "kubernetes_token_file": own,
            "artifact_limit_bytes": 1 << 20,
        }
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = create_app(told, Part.CONTROL_PLANE)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


class Party:
    """Somebody who calls the control plane."""

    def __init__(self, plane: str, token: str) -> None:
        self.client = httpx.Client(
            base_url=plane, headers={"Authorization": f"Bearer {token}"}, trust_env=False
        )

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.client.request(method, f"/internal/v1{path}", **options)

    def store(self, run: str, **options: Any) -> HttpArtifactStore:
        return HttpArtifactStore(self.client, run, **options)


@pytest.fixture
def parties(plane: str) -> Iterator[dict[str, Party]]:
    made = {name: Party(plane, name) for name in ("operator", "acme", "bolt")}
    yield made
    for party in made.values():
        party.client.close()


@pytest.fixture
def operator(parties: dict[str, Party]) -> Party:
    return parties["operator"]


def domain_run(operator: Party, namespace: str, *, attempt: int = 0, parent: Any = None) -> str:
    """Return the id of a run of the Domain trade in a namespace."""
    operator.call("PUT", f"/tenants/{namespace}")
    record = {"uid": f"dom-{namespace}", "tenant": namespace, "generation": 1, "specDigest": "sha256:1"}
    operator.call("PUT", f"/domains/{namespace}/trade", json={**record, "baseUri": "wheel://base"})
    spec = {"baseModel": {"uri": "wheel://base"}, "corpus": [{"uri": "corpus.jsonl"}], "split": 3}
    body = {"uid": f"dom-{namespace}", "tenant": namespace, "specDigest": "sha256:1", "attempt": attempt}
    body["spec"] = {"kind": "domain", "namespace": namespace, "name": "trade", "spec": spec, "parent": parent}
    made = operator.call("POST", "/runs", json=body)
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


@pytest.fixture
def run(operator: Party) -> str:
    return domain_run(operator, "acme")


@pytest.fixture
def content(tmp_path: Path) -> Path:
    folder = tmp_path / "content"
    (folder / "more").mkdir(parents=True)
    save_file({"values": np.arange(30_000, dtype=np.float32)}, folder / "t.safetensors")
    (folder / "t.json").write_text('{"rows": 4}')
    (folder / "more" / "twin.json").write_text('{"rows": 4}')
    return folder


def publish(store: Any, folder: Path, kind: ArtifactKind = ArtifactKind.LAYERS) -> ArtifactRef:
    ref: ArtifactRef = store.publish(kind, folder, base_digest=BASE)
    return ref


def shared_store(settings: Settings) -> ArtifactStore:
    """The store as runtimes reach it."""
    return ArtifactStore(settings.artifacts)


def complete(party: Party, run: str, *refs: ArtifactRef) -> httpx.Response:
    artifacts = [ref.model_dump(mode="json", by_alias=True) for ref in refs]
    return party.call(
        "POST", f"/runs/{run}/complete", json={"artifacts": artifacts, "baseDigest": BASE, "split": 3}
    )


def test_what_a_trainer_publishes_is_what_runtimes_fetch(
    parties: dict[str, Party], run: str, content: Path, settings: Settings, tmp_path: Path
) -> None:
    acme = parties["acme"].store(run)
    ref = publish(acme, content)
    assert ref == publish(ArtifactStore(str(tmp_path / "elsewhere")), content)
    for name, store in (("http", acme), ("shared", shared_store(settings))):
        copy = store.fetch(ref, tmp_path / name)
        for path in ("t.safetensors", "t.json", "more/twin.json"):
            assert (copy / path).read_bytes() == (content / path).read_bytes()
    assert acme.manifest(ref).base_digest == BASE
    assert complete(parties["acme"], run, ref).status_code == 200
    assert not list((Path(settings.artifacts) / ".uploads").glob("*/*"))


def test_nothing_is_visible_before_the_commit(
    parties: dict[str, Party], run: str, content: Path, settings: Settings, tmp_path: Path
) -> None:
    ref = publish(ArtifactStore(str(tmp_path / "elsewhere")), content)
    (file,) = [one for one in shared_store_manifest(tmp_path, ref).files if one.path == "t.safetensors"]
    address = f"/artifacts/{run}/files/{file.digest.removeprefix('sha256:')}"
    assert parties["acme"].call("PUT", address, content=(content / file.path).read_bytes()).status_code == 204
    with pytest.raises(NotReady, match="ArtifactMissing"):
        shared_store(settings).fetch(ref, tmp_path / "cache")
    with pytest.raises(NotReady, match="ArtifactMissing"):
        parties["acme"].store(run).fetch(ref, tmp_path / "cache")
    manifest = manifest_text(tmp_path, ref)
    answer = parties["acme"].call("POST", f"/artifacts/{run}", json={"manifest": manifest}).json()
    assert answer["artifact"] is None
    assert len(answer["missing"]) == 1  # what was uploaded is not asked for again; twins are one file


def manifest_text(tmp_path: Path, ref: ArtifactRef) -> str:
    return (tmp_path / "elsewhere" / ref.uri / "manifest.json").read_text()


def shared_store_manifest(tmp_path: Path, ref: ArtifactRef) -> Any:
    return ArtifactStore(str(tmp_path / "elsewhere")).manifest(ref)


def test_publishing_again_sends_no_bytes(
    parties: dict[str, Party], operator: Party, run: str, content: Path
) -> None:
    sent: list[tuple[str, int]] = []

    def note(request: httpx.Request) -> None:
        sent.append((request.method, int(request.headers.get("content-length", 0))))

    ref = publish(parties["acme"].store(run), content)
    parties["acme"].client.event_hooks["request"].append(note)
    assert publish(parties["acme"].store(run), content) == ref
    again = domain_run(operator, "acme", attempt=1)
    assert publish(parties["acme"].store(again), content) == ref
    assert [method for method, _ in sent] == ["POST", "POST"]
    assert sum(length for _, length in sent) < 5_000


def test_another_namespace_must_show_the_bytes_itself(
    parties: dict[str, Party], operator: Party, run: str, content: Path, tmp_path: Path
) -> None:
    ref = publish(parties["acme"].store(run), content)
    publish(ArtifactStore(str(tmp_path / "elsewhere")), content)
    other = domain_run(operator, "bolt")
    body = {"manifest": manifest_text(tmp_path, ref)}
    assert parties["bolt"].call("POST", f"/artifacts/{other}", json=body).json()["artifact"] is None
    refused = complete(parties["bolt"], other, ref)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "ArtifactNotPublished"
    with pytest.raises(NotReady, match="ArtifactMissing"):
        parties["bolt"].store(other).fetch(ref, tmp_path / "cache")
    assert publish(parties["bolt"].store(other), content) == ref


def test_a_trainer_touches_only_runs_of_its_namespace(
    parties: dict[str, Party], run: str, content: Path, tmp_path: Path
) -> None:
    ref = publish(parties["acme"].store(run), content)
    with pytest.raises(InvalidInput, match="another namespace"):
        parties["bolt"].store(run).fetch(ref, tmp_path / "cache")
    with pytest.raises(InvalidInput, match="another namespace"):
        publish(parties["bolt"].store(run), content)
    digits = ref.digest.removeprefix("sha256:")
    answer = parties["bolt"].call("PUT", f"/artifacts/{run}/files/{digits}", content=b"x")
    assert answer.status_code == 403
    assert answer.json()["error"]["type"] == "permission_error"
    assert parties["operator"].call("POST", f"/artifacts/{run}", json={"manifest": ""}).status_code == 403


def test_a_run_fetches_what_it_stands_on_and_nothing_else(
    parties: dict[str, Party], operator: Party, run: str, content: Path, tmp_path: Path
) -> None:
    ref = publish(parties["acme"].store(run), content)
    (content / "t.json").write_text("[]")
    other = publish(parties["acme"].store(run), content, ArtifactKind.TABLE)
    assert complete(parties["acme"], run, ref).status_code == 200
    parent = operator.call("GET", "/domains/acme/trade").json()["current"]
    child = domain_run(operator, "bolt", parent=parent)
    assert parties["bolt"].store(child).fetch(ref, tmp_path / "bolt").is_dir()
    with pytest.raises(NotReady, match="ArtifactMissing"):
        parties["bolt"].store(child).fetch(other, tmp_path / "bolt")


def test_a_domain_may_keep_the_layers_of_its_parent(
    parties: dict[str, Party], operator: Party, run: str, content: Path
) -> None:
    layers = publish(parties["acme"].store(run), content)
    assert complete(parties["acme"], run, layers).status_code == 200
    parent = operator.call("GET", "/domains/acme/trade").json()["current"]
    child = domain_run(operator, "bolt", parent=parent)
    (content / "t.json").write_text("[]")
    table = publish(parties["bolt"].store(child), content, ArtifactKind.TABLE)
    done = complete(parties["bolt"], child, layers, table)
    assert done.status_code == 200, done.text


def test_a_broken_transfer_goes_on_where_it_stopped(
    parties: dict[str, Party], run: str, content: Path, tmp_path: Path
) -> None:
    ref = publish(parties["acme"].store(run), content)

    class Breaking(httpx.HTTPTransport):
        """Breaks the first answers after some bytes."""

        def __init__(self) -> None:
            super().__init__()
            self.ranges: list[str | None] = []

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answer = super().handle_request(request)
            if request.url.path.endswith(".safetensors"):
                self.ranges.append(request.headers.get("range"))
                if len(self.ranges) < 3:
                    return httpx.Response(
                        answer.status_code, headers=answer.headers, stream=Short(answer.stream)
                    )
            return answer

    class Short(httpx.SyncByteStream):
        def __init__(self, whole: Any) -> None:
            self._whole = whole

        def __iter__(self) -> Iterator[bytes]:
            for piece in self._whole:
                yield piece[:1000]
                raise httpx.ReadError("the connection broke")

        def close(self) -> None:
            self._whole.close()

    transport = Breaking()
    own = parties["acme"].client
    with httpx.Client(base_url=own.base_url, headers=own.headers, transport=transport) as client:
        store = HttpArtifactStore(client, run, sleep=lambda _: None)
        copy = store.fetch(ref, tmp_path / "cache")
    assert (copy / "t.safetensors").read_bytes() == (content / "t.safetensors").read_bytes()
    assert transport.ranges == [None, "bytes=1000-", "bytes=2000-"]


def test_a_control_plane_that_is_away_is_waited_for_and_no_longer(content: Path) -> None:
    waited: list[float] = []
    with httpx.Client(base_url="http://127.0.0.1:9", trust_env=False) as client:
        store = HttpArtifactStore(client, "1", patience=10.0, sleep=waited.append, clock=lambda: sum(waited))
        with pytest.raises(NotReady, match="ControlPlaneAway"):
            publish(store, content)
    assert waited == [0.5, 1.0, 2.0, 4.0]


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
def test_a_range_of_bytes_can_be_read(
    parties: dict[str, Party], run: str, content: Path, wanted: str, status: int, body: bytes | None
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
def test_nothing_else_can_be_read(parties: dict[str, Party], run: str, content: Path, path: str) -> None:
    ref = publish(parties["acme"].store(run), content)
    digits = ref.digest.removeprefix("sha256:")
    assert parties["acme"].call("GET", f"/artifacts/{run}/{digits}/{path}").status_code == 404


def test_bytes_that_do_not_hash_to_their_name_are_dropped(
    parties: dict[str, Party], run: str, settings: Settings
) -> None:
    answer = parties["acme"].call("PUT", f"/artifacts/{run}/files/{'0' * 64}", content=b"something")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "DigestMismatch")
    assert not list((Path(settings.artifacts) / ".uploads" / run).iterdir())


def test_an_artifact_that_is_too_large_is_refused(
    parties: dict[str, Party], run: str, tmp_path: Path
) -> None:
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
def test_a_manifest_that_is_none_is_refused(
    parties: dict[str, Party], run: str, change: dict[str, Any]
) -> None:
    file = {"path": "t.json", "digest": BASE, "bytes": 1}
    manifest = {"kind": "Layers", "baseDigest": BASE, "files": [file], **change}
    answer = parties["acme"].call("POST", f"/artifacts/{run}", json={"manifest": json.dumps(manifest)})
    assert answer.status_code == 400, answer.text


def test_what_no_run_completes_is_erased_in_the_end(
    parties: dict[str, Party], run: str, content: Path, settings: Settings
) -> None:
    ref = publish(parties["acme"].store(run), content)
    database = Database(settings.database_url)
    eraser = ArtifactEraser(database, settings.artifacts)
    assert eraser.erase_orphans() == 0  # the run may still complete
    assert complete(parties["acme"], run, ref).status_code == 200
    with database.read() as session:
        assert session.get_one(Artifact, ref.digest).orphaned_at is None
    parties["operator"].call("DELETE", "/domains/acme/trade")
    assert eraser.erase_orphans() == 1
    assert not (Path(settings.artifacts) / ref.uri).exists()
    database.close()


def test_half_uploads_go_when_their_run_is_over(
    parties: dict[str, Party], operator: Party, run: str, settings: Settings
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
    parties: dict[str, Party], run: str, settings: Settings
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
