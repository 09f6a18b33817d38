"""The billed time of a run includes all of its processes, also failed and killed ones."""

import logging
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
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def spend(folder: Path, seconds: float) -> float:
    """Work for ``seconds`` of fake time; return the run's total."""
    clock = Clock()
    with ElapsedTime(folder, clock=clock) as elapsed:
        clock.now += seconds
        return elapsed.seconds


def test_time_of_earlier_processes_is_added(tmp_path: Path) -> None:
    assert spend(tmp_path, 95) == 95
    assert spend(tmp_path, 5) == 100


def test_time_of_failed_work_counts(tmp_path: Path) -> None:
    def fail() -> None:
        clock = Clock()
        with ElapsedTime(tmp_path, clock=clock):
            clock.now += 40
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert spend(tmp_path, 2) == 42


def test_time_of_a_killed_process_counts(tmp_path: Path) -> None:
    begun = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", _KILL_ME, str(tmp_path)])
    while not (tmp_path / ELAPSED_FILE).exists() or ElapsedTime(tmp_path).seconds < 0.5:
        assert child.poll() is None
        time.sleep(0.05)
    child.kill()
    child.wait()
    assert 0.5 <= ElapsedTime(tmp_path).seconds < time.monotonic() - begun


def test_a_failed_save_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="hmi_runtime.training.elapsed"):
        assert spend(tmp_path / "gone", 3) == 3
    assert "could not be saved" in caplog.text
