"""The time that a run is billed for: all of it, whatever became of the processes that worked on it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from hmi_runtime.training.elapsed import ELAPSED_FILE, ElapsedTime

_KILL_ME = """
import sys, time
from pathlib import Path
from hmi_runtime.training.elapsed import ElapsedTime
with ElapsedTime(Path(sys.argv[1]), every_seconds=0.05):
    time.sleep(600)
"""


class Clock:
    """Stands where it is put."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def spend(folder: Path, seconds: float) -> float:
    """Work so long in a process of its own clock; return the sum."""
    clock = Clock()
    with ElapsedTime(folder, clock=clock) as spent:
        clock.now += seconds
        return spent.seconds


def test_what_was_spent_before_is_added_to(tmp_path: Path) -> None:
    assert spend(tmp_path, 95) == 95
    assert spend(tmp_path, 5) == 100


def test_what_was_spent_on_work_that_failed_counts(tmp_path: Path) -> None:
    def fail() -> None:
        clock = Clock()
        with ElapsedTime(tmp_path, clock=clock):
            clock.now += 40
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert spend(tmp_path, 2) == 42


def test_a_killed_process_has_kept_its_time(tmp_path: Path) -> None:
    begun = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", _KILL_ME, str(tmp_path)])
    while not (tmp_path / ELAPSED_FILE).exists() or ElapsedTime(tmp_path).seconds < 0.5:
        assert child.poll() is None
        time.sleep(0.05)
    child.kill()
    child.wait()
    assert 0.5 <= ElapsedTime(tmp_path).seconds < time.monotonic() - begun


def test_a_folder_that_takes_nothing_more_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert spend(tmp_path / "gone", 3) == 3
    assert "could not be kept" in caplog.text
