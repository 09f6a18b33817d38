"""Make reads reach the disk: limit a process's memory, page cache included, or drop a file's pages."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryGroup:
    """A control group of version 1 or 2 for one benchmark."""

    folder: Path
    version: int

    def add(self, process: int) -> None:
        """Move a process into the group; what it takes from now on is counted."""
        (self.folder / "cgroup.procs").write_text(str(process))

    def limit(self, size: int) -> None:
        """Let the processes of the group take at most ``size`` bytes, page cache included."""
        name = "memory.max" if self.version == 2 else "memory.limit_in_bytes"
        (self.folder / name).write_text(str(size))

    @property
    def used(self) -> int:
        """Bytes that the group takes, page cache included."""
        name = "memory.current" if self.version == 2 else "memory.usage_in_bytes"
        return int((self.folder / name).read_text())


@contextmanager
def memory_group() -> Iterator[MemoryGroup | None]:
    """Make a group and remove it afterwards, when its processes have ended; None if that is not allowed."""
    group = _new_group()
    try:
        yield group
    finally:
        if group is not None:
            group.folder.rmdir()


def _new_group() -> MemoryGroup | None:
    name = f"hmi-bench-{os.getpid()}"
    first = MemoryGroup(_ROOT / "memory" / name, 1)
    second = MemoryGroup(_ROOT / name, 2)
    controllers = _ROOT / "cgroup.controllers"
    try:
        if controllers.exists() and "memory" in controllers.read_text():
            second.folder.mkdir()
            if (second.folder / "memory.max").exists():
                return second
            second.folder.rmdir()
        elif first.folder.parent.exists():
            first.folder.mkdir()
            return first
    except OSError:
        return None
    return None


def drop_file_cache(file: Path) -> None:
    """Let the kernel forget the pages of ``file`` that no process maps."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
