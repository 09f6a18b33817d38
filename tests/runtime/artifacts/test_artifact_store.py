"""The artifact store returns exactly what was published, or an error with a reason."""

import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from hmi_api.artifacts import ArtifactKind, ArtifactManifest, ArtifactRef
from hmi_api.errors import Damaged, HmiError, InvalidInput, NotReady
from hmi_api.names import digest_bytes
from hmi_runtime.artifacts.store import ArtifactStore
from hmi_runtime.artifacts.verification import MANIFEST_FILE, manifest_bytes

BASE = "sha256:" + "0" * 64


def write_content(folder: Path, rows: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"values": np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)}, folder / "t.safetensors")
    (folder / "t.json").write_text('{"rows": 4}')
    return folder


@pytest.fixture
def content(tmp_path: Path) -> Path:
    return write_content(tmp_path / "content")


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "store")
        return
    name = f"memory://{uuid4().hex}"
    yield name


def publish(store: ArtifactStore, folder: Path) -> ArtifactRef:
    return store.publish(
        ArtifactKind.TABLE, folder, base_digest=BASE, layers_digest=BASE, config={"width": 3}
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_fetched_artifact_equals_the_published_one(root: str, content: Path, tmp_path: Path) -> None:
    ref = publish(ArtifactStore(root), content)
    copy = ArtifactStore(root).fetch(ref, tmp_path / "cache")
    fetched = files_of(copy)
    fetched.pop(MANIFEST_FILE)
    manifest = ArtifactManifest.model_validate_json((copy / MANIFEST_FILE).read_bytes())
    assert fetched == files_of(content)
    assert (manifest.layers_digest, manifest.config) == (BASE, {"width": 3})
    assert ref.bytes == sum(path.stat().st_size for path in copy.iterdir())
    assert ArtifactStore(root).manifest(ref) == manifest


def test_publishing_the_same_content_twice_gives_one_artifact(
    root: str, content: Path, tmp_path: Path
) -> None:
    store = ArtifactStore(root)
    assert publish(store, content) == publish(store, write_content(tmp_path / "again"))
    assert publish(store, content) != publish(store, write_content(tmp_path / "other", rows=5))


def test_nested_files_keep_their_paths(root: str, content: Path, tmp_path: Path) -> None:
    (content / "more").mkdir()
    (content / "more" / "notes.json").write_text("[]")
    store = ArtifactStore(root)
    assert (store.fetch(publish(store, content), tmp_path / "cache") / "more" / "notes.json").is_file()


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:-1] + bytes([whole[-1] ^ 1])])
def test_publishing_again_repairs_a_truncated_or_altered_artifact(
    tmp_path: Path, content: Path, damage: Callable[[bytes], bytes]
) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    ref = publish(store, content)
    stored = tmp_path / "store" / ref.uri / "t.safetensors"
    stored.write_bytes(damage(stored.read_bytes()))
    assert publish(store, content) == ref
    assert files_of(store.fetch(ref, tmp_path / "cache")).items() >= files_of(content).items()


def test_a_deleted_artifact_is_missing_and_deleting_is_idempotent(
    root: str, content: Path, tmp_path: Path
) -> None:
    store = ArtifactStore(root)
    ref = publish(store, content)
    store.delete(ref)
    store.delete(ref)
    with pytest.raises(NotReady, match="ArtifactMissing"):
        store.fetch(ref, tmp_path / "cache")


def test_an_upload_without_its_manifest_is_no_artifact(content: Path, tmp_path: Path) -> None:
    store = ArtifactStore(f"memory://{uuid4().hex}")
    ref = publish(store, content)
    store._fs.rm_file(store._address(ref.uri, MANIFEST_FILE))
    with pytest.raises(NotReady, match="ArtifactMissing"):
        store.fetch(ref, tmp_path / "cache")
    store.delete(ref)
    assert not store._fs.exists(store._address(ref.uri))


def test_a_local_copy_outlives_the_stored_artifact(root: str, content: Path, tmp_path: Path) -> None:
    store = ArtifactStore(root)
    ref = publish(store, content)
    copy = store.fetch(ref, tmp_path / "cache")
    store.delete(ref)
    assert store.fetch(ref, tmp_path / "cache") == copy


def test_the_next_process_fetches_a_damaged_local_copy_again(
    root: str, content: Path, tmp_path: Path
) -> None:
    ref = publish(ArtifactStore(root), content)
    copy = ArtifactStore(root).fetch(ref, tmp_path / "cache")
    damaged = bytearray((copy / "t.safetensors").read_bytes())
    damaged[-1] ^= 1
    (copy / "t.safetensors").write_bytes(damaged)
    (copy / "t.json").unlink()
    again = ArtifactStore(root).fetch(ref, tmp_path / "cache")
    assert files_of(again).items() >= files_of(content).items()


@pytest.mark.parametrize("name", ["weights.bin", "weights.pt", "code.py", "noext"])
def test_only_safetensors_and_json_are_published(content: Path, tmp_path: Path, name: str) -> None:
    (content / name).write_bytes(pickle.dumps([1]))
    with pytest.raises(InvalidInput, match="NotSafetensors"):
        publish(ArtifactStore(str(tmp_path / "store")), content)


def test_a_pickle_named_safetensors_is_refused(content: Path, tmp_path: Path) -> None:
    (content / "w.safetensors").write_bytes(pickle.dumps({"w": list(range(1000))}))
    with pytest.raises(InvalidInput, match="NotSafetensors"):
        publish(ArtifactStore(str(tmp_path / "store")), content)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="ArtifactEmpty"):
        publish(ArtifactStore(str(tmp_path / "store")), tmp_path / "empty")


def forge(store_folder: Path, ref: ArtifactRef, path: str) -> ArtifactRef:
    """Store a manifest that names ``path``, under its correct digest."""
    manifest = ArtifactManifest.model_validate_json((store_folder / ref.uri / MANIFEST_FILE).read_bytes())
    files = [file.model_copy(update={"path": path}) for file in manifest.files[:1]]
    data = manifest_bytes(manifest.model_copy(update={"files": files}))
    (store_folder / "table" / "forged").mkdir()
    (store_folder / "table" / "forged" / MANIFEST_FILE).write_bytes(data)
    return ref.model_copy(update={"uri": "table/forged", "digest": digest_bytes(data)})


@pytest.mark.parametrize(
    "path",
    ["../x.json", "/etc/x.json", "a/../../x.json", "a//x.json", "./x.json", "", "a\\x.json", MANIFEST_FILE],
)
def test_a_manifest_cannot_name_files_outside_its_folder(content: Path, tmp_path: Path, path: str) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    forged = forge(tmp_path / "store", publish(store, content), path)
    with pytest.raises(InvalidInput, match="PathOutsideArtifact"):
        store.fetch(forged, tmp_path / "cache")


def test_a_manifest_cannot_name_a_pickle(content: Path, tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    forged = forge(tmp_path / "store", publish(store, content), "adapter_model.bin")
    with pytest.raises(InvalidInput, match="NotSafetensors"):
        store.fetch(forged, tmp_path / "cache")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"uri": "../elsewhere"}, "PathOutsideArtifact"),
        ({"digest": "sha256:../../x"}, "DigestInvalid"),
        ({"digest": "sha256:" + "0" * 64}, "DigestMismatch"),
        ({"kind": ArtifactKind.ADAPTER}, "ManifestInvalid"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(
    content: Path, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    ref = publish(store, content).model_copy(update=change)
    with pytest.raises(HmiError, match=reason):
        store.fetch(ref, tmp_path / "cache")


def test_missing_and_truncated_files_have_different_reasons(content: Path, tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    ref = publish(store, content)
    stored = tmp_path / "store" / ref.uri / "t.safetensors"
    stored.write_bytes(stored.read_bytes()[:-3])
    with pytest.raises(Damaged, match="ArtifactTruncated"):
        store.fetch(ref, tmp_path / "cache")
    stored.unlink()
    with pytest.raises(Damaged, match="ArtifactMissing"):
        store.fetch(ref, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "table").iterdir()), "nothing half-fetched stays"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ArtifactRef]:
    folder = tmp_path_factory.mktemp("published")
    ref = publish(ArtifactStore(str(folder / "store")), write_content(folder / "content"))
    return folder, ref


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_is_found(published: tuple[Path, ArtifactRef], data: st.DataObject) -> None:
    folder, ref = published
    name = data.draw(st.sampled_from([MANIFEST_FILE, "t.json", "t.safetensors"]))
    stored = folder / "store" / ref.uri / name
    whole = stored.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[place] ^= data.draw(st.integers(1, 255))
    stored.write_bytes(flipped)
    try:
        with pytest.raises(Damaged, match="DigestMismatch"):
            ArtifactStore(str(folder / "store")).fetch(ref, folder / "cache")
        assert not (folder / "cache" / "table" / ref.digest[7:]).exists()
    finally:
        stored.write_bytes(whole)


class CountingStore(ArtifactStore):
    """A store that counts downloads and delays the first one until released."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.downloads = 0
        self.go_on = threading.Event()

    def _download(self, ref: ArtifactRef, copy: Path) -> None:
        self.downloads += 1
        assert self.go_on.wait(10)
        super()._download(ref, copy)


def test_threads_share_one_download(root: str, content: Path, tmp_path: Path) -> None:
    ref = publish(ArtifactStore(root), content)
    store = CountingStore(root)
    with ThreadPoolExecutor(8) as pool:
        fetches = [pool.submit(store.fetch, ref, tmp_path / "cache") for _ in range(8)]
        store.go_on.set()
        copies = {future.result(10) for future in fetches}
    assert store.downloads == 1
    assert len(copies) == 1
    assert list(load_file(copies.pop() / "t.safetensors")) == ["values"]


def test_processes_that_fetch_at_once_share_one_complete_copy(content: Path, tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    ref = publish(ArtifactStore(root), content)
    stores = [CountingStore(root) for _ in range(4)]  # each with its own locks, as in separate processes
    with ThreadPoolExecutor(4) as pool:
        fetches = [pool.submit(store.fetch, ref, tmp_path / "cache") for store in stores]
        for store in stores:
            store.go_on.set()
        assert len({future.result(10) for future in fetches}) == 1
    assert [entry.name for entry in (tmp_path / "cache" / "table").iterdir()] == [ref.digest[7:]]


def test_the_error_for_a_missing_driver_says_what_to_install() -> None:
    with pytest.raises(InvalidInput, match="ArtifactStoreUnsupported"):
        ArtifactStore("nosuchprotocol://bucket")


@pytest.mark.parametrize("harm", ["altered", "removed", "emptied", "no manifest"])
def test_an_altered_copy_is_checked_and_fetched_again(
    root: str, content: Path, tmp_path: Path, harm: str
) -> None:
    store = ArtifactStore(root)
    ref = publish(store, content)
    copy = store.fetch(ref, tmp_path / "cache")
    whole = files_of(copy)
    if harm == "altered":  # by one bit, and as long as before
        data = bytearray((copy / "t.safetensors").read_bytes())
        data[-1] ^= 1
        (copy / "t.safetensors").write_bytes(bytes(data))
    elif harm == "removed":
        (copy / "t.safetensors").unlink()
    elif harm == "emptied":
        for path in list(copy.rglob("*")):
            path.unlink()
    else:
        (copy / MANIFEST_FILE).unlink()
    assert files_of(store.fetch(ref, tmp_path / "cache")) == whole
