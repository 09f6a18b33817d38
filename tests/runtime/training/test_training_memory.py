"""Freed memory returns to the system; tested in new processes, since malloc adapts over time."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import torch
from hmi_runtime.training.run import return_large_blocks_to_os

if sys.argv[1] == "set" and not return_large_blocks_to_os():
    sys.exit("not glibc")

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

torch.empty(31 << 20, dtype=torch.uint8).fill_(1)  # freed at once: malloc raises its threshold
before = resident()
kept = []
for step in range(20):  # kept blocks lie between freed ones, like an optimiser's state
    batch = torch.empty((5 << 20) + 4096 * step, dtype=torch.uint8).fill_(1)
    kept.append((batch, torch.empty(64 << 10, dtype=torch.uint8).fill_(1)))
kept = [small for _, small in kept]
del batch
print((resident() - before) >> 20)
"""


def grown(how: str) -> int:
    """Return the MiB that the process has grown by, although nearly all of it is freed."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=False)
    if ended.returncode and "not glibc" in ended.stderr:
        pytest.skip("malloc is not glibc's here")
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout)


def test_large_blocks_return_to_the_system_when_freed() -> None:
    assert grown("set") < 20
    assert grown("unset") > 60  # otherwise this test proves nothing
