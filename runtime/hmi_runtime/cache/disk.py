"""The disk tier: verified local copies of artifacts under a byte budget."""

import threading
from collections.abc import Callable
from pathlib import Path

from hmi_api.artifacts import ArtifactRef
from hmi_api.errors import NotReady
from hmi_runtime.artifacts.folders import remove_folder
from hmi_runtime.cache.tiers import CacheEvents, LruIndex, Tier

_DIGEST_LENGTH = 64  # a copy's folder is named by the hexadecimal digits of its SHA-256

Fetch = Callable[[ArtifactRef, Path], Path]
"""Downloads an artifact into a folder unless it is there, verifies every byte, returns its local folder."""


class DiskTier:
    """Local copies by digest. A copy that is in use (read or memory-mapped) is never removed.

    Thread-safe. Different artifacts are fetched concurrently, the same one once.
    """

    def __init__(self, folder: Path, limit: int, fetch: Fetch, events: CacheEvents | None = None) -> None:
        self._folder = folder
        self._fetch = fetch
        self._events = events or CacheEvents()
        self._index: LruIndex[str] = LruIndex(limit)
        self._paths: dict[str, Path] = {}
        self._fetching: set[str] = set()
        self._deleting: set[str] = set()
        self._changed = threading.Condition()
        folder.mkdir(parents=True, exist_ok=True)
        self._index_existing_copies()

    @property
    def used(self) -> int:
        """Bytes of all copies."""
        return self._index.used

    def acquire(self, ref: ArtifactRef) -> Path:
        """Return the verified local folder of ``ref`` and protect it from eviction until ``release``.

        Verifies existing copies too. Raises what the fetch raises (``Damaged``, ``OSError``), and
        ``NotReady`` DiskBudgetFull if the copies in use leave no room.
        """
        with self._changed:
            self._changed.wait_for(lambda: ref.digest not in self._fetching)
            self._reserve(ref)
            self._fetching.add(ref.digest)
        path: Path | None = None
        try:
            path = self._fetch(ref, self._folder)
            return path
        finally:
            with self._changed:
                self._fetching.discard(ref.digest)
                if path is None:
                    self._index.release(ref.digest)
                    self._remove_if_idle(ref.digest)
                else:
                    self._paths[ref.digest] = path
                self._changed.notify_all()

    def release(self, digest: str) -> None:
        """End one ``acquire`` of this artifact."""
        with self._changed:
            self._index.release(digest)
            if digest in self._deleting:
                self._remove_if_idle(digest)

    def delete(self, digest: str) -> None:
        """Delete the copy now, or when the last user releases it."""
        with self._changed:
            if digest in self._index:
                self._deleting.add(digest)
                self._remove_if_idle(digest)

    def _reserve(self, ref: ArtifactRef) -> None:
        if ref.digest not in self._index:
            if not self._index.has_room(ref.bytes):
                raise NotReady(
                    "DiskBudgetFull",
                    f"{ref.bytes} bytes are more than the free and idle part of the disk cache of "
                    f"{self._index.limit}; raise HMI_DISK_BUDGET.",
                )
            for digest in self._index.add(ref.digest, ref.bytes):
                self._delete(digest)
                self._events.evicted(Tier.DISK, Tier.STORE)
        self._deleting.discard(ref.digest)
        self._index.acquire(ref.digest)

    def _remove_if_idle(self, digest: str) -> None:
        if self._index.uses(digest) == 0:
            self._index.remove(digest)
            self._deleting.discard(digest)
            self._delete(digest)

    def _delete(self, digest: str) -> None:
        path = self._paths.pop(digest, None)
        if path is not None:
            remove_folder(path)

    def _index_existing_copies(self) -> None:
        """Index the copies of an earlier process, oldest first; ``acquire`` verifies them before use."""
        copies = [path for path in self._folder.glob("*/*") if len(path.name) == _DIGEST_LENGTH]
        for path in sorted(copies, key=lambda copy: copy.stat().st_mtime):
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            if self._index.has_room(size):
                digest = f"sha256:{path.name}"
                for evicted in self._index.add(digest, size):
                    self._delete(evicted)
                self._paths[digest] = path
            else:
                remove_folder(path)
