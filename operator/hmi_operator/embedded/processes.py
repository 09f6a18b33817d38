"""Telling one process from another that has its number: by the moment at which it started."""

import json
import os
import signal
from pathlib import Path

from hmi_operator.embedded.files import write_atomically

_STARTED_FIELD = 19  # of /proc/PID/stat, counted after the name: clock ticks since boot


def started_at(pid: int) -> int | None:
    """Return when a live process started, in clock ticks since boot; None when there is none, or no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    after_name = stat.rpartition(")")[2].split()
    return None if after_name[0] == "Z" else int(after_name[_STARTED_FIELD])


def boot_id() -> str:
    """Return what names this boot of the machine; start times of two boots cannot be compared."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text().strip() if file.exists() else ""


def remember(file: Path, pid: int) -> None:
    """Write down which process is meant, for whoever comes after this one."""
    write_atomically(file, {"pid": pid, "startedAt": started_at(pid), "boot": boot_id()})


def remembered(file: Path) -> int | None:
    """Return the id of the process that a file names, if that very process still lives."""
    try:
        body = json.loads(file.read_bytes())
        pid, started, boot = int(body["pid"]), body["startedAt"], body["boot"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    same = started is not None and boot == boot_id() and started_at(pid) == started
    return pid if same else None


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal; nothing happens when the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
