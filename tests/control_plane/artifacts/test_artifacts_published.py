"""Artifacts of training Jobs: uploaded through the control plane to the store, and read back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.errors import HmiError, NotReady
from hmi_control_plane.settings import Settings
from hmi_runtime.artifacts.store import ArtifactStore

BASE = "sha256:" + "0" * 64
OPERATOR = "system:serviceaccount:hmi-system:hmi-operator"


def publish(store: Any, folder: Path, kind: ArtifactKind = ArtifactKind.LAYERS) -> ArtifactRef:
    ref: ArtifactRef = store.publish(kind, folder, base_digest=BASE)
    return ref


def shared_store(settings: Settings) -> ArtifactStore:
    """The store as runtimes reach it."""
    return ArtifactStore(settings.artifacts)


def test_runtimes_fetch_a_published_artifact(
    parties: dict[str, Any], run: str, content: Path, settings: Settings, tmp_path: Path
) -> None:
    acme = parties["acme"].store(run)
    ref = publish(acme, content)
    assert ref == publish(ArtifactStore(str(tmp_path / "elsewhere")), content)
    for name, store in (("http", acme), ("shared", shared_store(settings))):
        copy = store.fetch(ref, tmp_path / name)
        for path in ("t.safetensors", "t.json", "more/twin.json"):
            assert (copy / path).read_bytes() == (content / path).read_bytes()
    assert acme.manifest(ref).base_digest == BASE
    assert parties["acme"].complete(run, ref).status_code == 200
    assert not list((Path(settings.artifacts) / ".uploads").glob("*/*"))


def test_nothing_is_visible_before_the_commit(
    parties: dict[str, Any], run: str, content: Path, settings: Settings, tmp_path: Path
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
    assert len(answer["missing"]) == 1  # uploaded files are not requested again; twins are one file


def manifest_text(tmp_path: Path, ref: ArtifactRef) -> str:
    return (tmp_path / "elsewhere" / ref.uri / "manifest.json").read_text()


def shared_store_manifest(tmp_path: Path, ref: ArtifactRef) -> Any:
    return ArtifactStore(str(tmp_path / "elsewhere")).manifest(ref)


def test_publishing_again_sends_no_bytes(
    parties: dict[str, Any], operator: Any, run: str, content: Path
) -> None:
    sent: list[tuple[str, int]] = []

    class Noting(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            sent.append((request.method, int(request.headers.get("content-length", 0))))
            return super().handle_request(request)

    ref = publish(parties["acme"].store(run), content)
    assert publish(parties["acme"].store(run, transport=Noting()), content) == ref
    again = operator.domain_run("acme", attempt=1)
    assert publish(parties["acme"].store(again, transport=Noting()), content) == ref
    assert [method for method, _ in sent] == ["POST", "POST"]
    assert sum(length for _, length in sent) < 5_000


def test_another_namespace_must_upload_the_bytes_itself(
    parties: dict[str, Any], operator: Any, run: str, content: Path, tmp_path: Path
) -> None:
    ref = publish(parties["acme"].store(run), content)
    publish(ArtifactStore(str(tmp_path / "elsewhere")), content)
    other = operator.domain_run("bolt")
    body = {"manifest": manifest_text(tmp_path, ref)}
    assert parties["bolt"].call("POST", f"/artifacts/{other}", json=body).json()["artifact"] is None
    refused = parties["bolt"].complete(other, ref)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "ArtifactNotPublished"
    with pytest.raises(NotReady, match="ArtifactMissing"):
        parties["bolt"].store(other).fetch(ref, tmp_path / "cache")
    assert publish(parties["bolt"].store(other), content) == ref


def test_a_trainer_accesses_only_runs_of_its_namespace(
    parties: dict[str, Any], run: str, content: Path, tmp_path: Path
) -> None:
    ref = publish(parties["acme"].store(run), content)
    with pytest.raises(HmiError, match="another namespace"):
        parties["bolt"].store(run).fetch(ref, tmp_path / "cache")
    with pytest.raises(HmiError, match="another namespace"):
        publish(parties["bolt"].store(run), content)
    digits = ref.digest.removeprefix("sha256:")
    answer = parties["bolt"].call("PUT", f"/artifacts/{run}/files/{digits}", content=b"x")
    assert answer.status_code == 403
    assert answer.json()["error"]["type"] == "permission_error"
    assert parties["operator"].call("POST", f"/artifacts/{run}", json={"manifest": ""}).status_code == 403


def test_a_run_can_fetch_only_the_artifacts_that_it_uses(
    parties: dict[str, Any], operator: Any, run: str, content: Path, tmp_path: Path
) -> None:
    ref = publish(parties["acme"].store(run), content)
    (content / "t.json").write_text("[]")
    other = publish(parties["acme"].store(run), content, ArtifactKind.TABLE)
    assert parties["acme"].complete(run, ref).status_code == 200
    parent = operator.call("GET", "/domains/acme/trade").json()["current"]
    child = operator.domain_run("bolt", parent=parent)
    assert parties["bolt"].store(child).fetch(ref, tmp_path / "bolt").is_dir()
    with pytest.raises(NotReady, match="ArtifactMissing"):
        parties["bolt"].store(child).fetch(other, tmp_path / "bolt")


def test_a_domain_may_keep_the_layers_of_its_parent(
    parties: dict[str, Any], operator: Any, run: str, content: Path
) -> None:
    layers = publish(parties["acme"].store(run), content)
    assert parties["acme"].complete(run, layers).status_code == 200
    parent = operator.call("GET", "/domains/acme/trade").json()["current"]
    child = operator.domain_run("bolt", parent=parent)
    (content / "t.json").write_text("[]")
    table = publish(parties["bolt"].store(child), content, ArtifactKind.TABLE)
    done = parties["bolt"].complete(child, layers, table)
    assert done.status_code == 200, done.text


def test_an_interrupted_transfer_continues_where_it_stopped(
    parties: dict[str, Any], run: str, content: Path, tmp_path: Path
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
    copy = parties["acme"].store(run, transport=transport).fetch(ref, tmp_path / "cache")
    assert (copy / "t.safetensors").read_bytes() == (content / "t.safetensors").read_bytes()
    assert transport.ranges == [None, "bytes=1000-", "bytes=2000-"]
