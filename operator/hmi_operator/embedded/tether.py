"""Runs a command that dies with the process that started it.

Run as a file, ``python tether.py PARENT_PID COMMAND...``, so that nothing but the standard library is
loaded: it asks the kernel for a signal at the parent's death and becomes the command, keeping its process
id. Where the kernel has no such wish (it is Linux's own), the command runs untethered.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Tie this process to its parent and become the command."""
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != parent:  # it died before the wish was made
            sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 -- becoming the command is the purpose


if __name__ == "__main__":
    main(sys.argv[1:])
