"""An artifact store that remembers when it was last asked for what: so that cold requests can be told."""

import threading
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hmi_api.artifacts import ArtifactRef
from hmi_runtime.artifacts import ArtifactStore


class Source(StrEnum):
    """Where an adapter was when a request for it came."""

    MEMORY = "memory"
    DISK = "disk"
    STORE = "store"


@dataclass(frozen=True)
class _Read:
    moment: float
    source: Source


class WatchedStore(ArtifactStore):
    """The real store, watched: the disk tier asks it for every adapter that is not in memory. Thread-safe."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._copies: dict[str, Path] = {}
        self._reads: dict[str, _Read] = {}
        self._watch = threading.Lock()

    def fetch(self, ref: ArtifactRef, cache_dir: Path) -> Path:
        """Fetch as the store does, and note when, and whether the local copy was there."""
        with self._watch:
            copy = self._copies.get(ref.digest)
        source = Source.DISK if copy is not None and copy.is_dir() else Source.STORE
        path = super().fetch(ref, cache_dir)
        with self._watch:
            self._copies[ref.digest] = path
            self._reads[ref.digest] = _Read(time.monotonic(), source)
        return path

    def source_since(self, digest: str, moment: float) -> Source:
        """Return from where an artifact was read since ``moment`` (monotonic); memory if it was not read."""
        with self._watch:
            read = self._reads.get(digest)
        return Source.MEMORY if read is None or read.moment < moment else read.source
