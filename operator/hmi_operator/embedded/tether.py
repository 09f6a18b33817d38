"""Runs a command that dies with the process that started it.

Run as a file, ``python tether.py PARENT_PID COMMAND...``, so that only the standard library is
loaded. It requests a signal from the kernel for when the parent dies (PR_SET_PDEATHSIG, Linux only), and then
becomes the command with the same process id.
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
        if os.getppid() != parent:  # it died before prctl
            sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 -- becoming the command is the purpose


if __name__ == "__main__":
    main(sys.argv[1:])
