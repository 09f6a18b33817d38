"""Starts a program that dies with its parent, however the parent dies.

    python -m hmi_cli.system.child PARENT_PID COMMAND...

On Linux the kernel is asked to end this process when its parent is gone, and then the command takes its
place. Elsewhere the command is started all the same, and outlives a parent that was killed with -9.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent and become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have gone before the kernel was asked.
    if os.getppid() != parent:
        sys.exit("the parent process is gone")
    os.execvp(command[0], command)  # noqa: S606 (the command is the supervisor's own)


def tied(command: list[str]) -> list[str]:
    """Return the command line that runs ``command`` tied to the process that calls this."""
    return [sys.executable, "-m", "hmi_cli.system.child", str(os.getpid()), *command]


if __name__ == "__main__":
    main()
