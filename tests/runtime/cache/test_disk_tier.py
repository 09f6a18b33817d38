"""The tier on the local disk: its budget, copies in use, and what an earlier process left."""

from collections import Counter
from pathlib import Path

import pytest

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.errors import Damaged, NotReady
from hmi_api.names import digest_bytes
from hmi_runtime.cache.disk import DiskTier


def ref(name: str, size: int = 10) -> ArtifactRef:
    digest = digest_bytes(name.encode())
    return ArtifactRef(kind=ArtifactKind.ADAPTER, uri=name, digest=digest, bytes=size)


def store_into(fetched: Counter[str]):  # type: ignore[no-untyped-def]
    def fetch(artifact: ArtifactRef, folder: Path) -> Path:
        fetched[artifact.uri] += 1
        if artifact.uri == "gone":
            raise Damaged("ArtifactMissing", "It is not in the store.")
        path = folder / "adapter" / artifact.digest.removeprefix("sha256:")
        path.mkdir(parents=True, exist_ok=True)
        (path / "data").write_bytes(bytes(artifact.bytes))
        return path

    return fetch


def test_the_disk_tier_stays_within_its_budget_and_keeps_copies_in_use(tmp_path: Path) -> None:
    fetched: Counter[str] = Counter()
    disk = DiskTier(tmp_path, 30, store_into(fetched))
    first = disk.acquire(ref("a"))
    for name in ("b", "c", "d"):
        disk.acquire(ref(name))
        disk.release(ref(name).digest)
    assert first.exists()
    assert disk.used == 30
    assert len(list((tmp_path / "adapter").iterdir())) == 3
    with pytest.raises(NotReady, match="DiskBudgetFull"):
        disk.acquire(ref("large", 25))
    disk.delete(ref("a").digest)
    assert first.exists()  # it is in use
    disk.release(ref("a").digest)
    assert not first.exists()


def test_a_failed_fetch_leaves_nothing_behind(tmp_path: Path) -> None:
    disk = DiskTier(tmp_path, 30, store_into(Counter()))
    with pytest.raises(Damaged):
        disk.acquire(ref("gone"))
    assert disk.used == 0


def test_copies_of_an_earlier_process_are_counted(tmp_path: Path) -> None:
    earlier = DiskTier(tmp_path, 30, store_into(Counter()))
    for name in ("a", "b"):
        earlier.acquire(ref(name))
    later = DiskTier(tmp_path, 15, store_into(Counter()))
    assert later.used == 10
    assert len(list((tmp_path / "adapter").iterdir())) == 1
