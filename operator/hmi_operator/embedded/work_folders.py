"""The folders in which training ran: what of them is kept, and for how long.

A run's log is kept as long as its resource. All else (tokenised rows, representations, checkpoints, copies of
artifacts: tens of megabytes a run) goes when the run has succeeded, a day after one that failed, so that it
can be looked into, and a week after one that ended without a word, which may be resumed until then.
"""

import contextlib
import logging
import shutil
from collections.abc import Collection
from pathlib import Path

from hmi_operator.embedded.files import write_atomically
from hmi_operator.embedded.processes import remembered

logger = logging.getLogger(__name__)

LOG_FILE = "run.log"
PROCESS_FILE = "process.json"
KEPT_AFTER_FAILURE_SECONDS = 24 * 3600.0
KEPT_FOR_RESUMPTION_SECONDS = 7 * 24 * 3600.0

_ENDED_FILE = "ended.json"
_RESULT_FILE = "result.json"
_SUCCEEDED, _FAILED = 0, 1


def tidy_after_end(folder: Path, code: int) -> None:
    """Keep of a run's folder what its process's exit ``code`` leaves a use for."""
    if code == _SUCCEEDED:
        keep_log_only(folder)
    elif code == _FAILED and folder.is_dir():
        write_atomically(folder / _ENDED_FILE, {"code": code})


def sweep(runs: Path, busy: Collection[Path], now: float) -> None:
    """Remove working files of ``{runs}/{uid}/{run id}`` that were kept long enough; ``busy`` folders are
    left.

    ``now`` is in seconds since 1970. A folder that cannot be read or removed is logged and left.
    """
    for folder in runs.glob("*/*"):
        if not folder.is_dir() or folder in busy or remembered(folder / PROCESS_FILE) is not None:
            continue
        try:
            if now - _last_used(folder) > _kept_seconds(folder):
                keep_log_only(folder)
        except OSError as error:
            logger.warning("%s was not tidied up: %s", folder, error)


def keep_log_only(folder: Path) -> None:
    """Remove everything but the log."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name == LOG_FILE:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _kept_seconds(folder: Path) -> float:
    ended = (folder / _ENDED_FILE).exists() or (folder / _RESULT_FILE).exists()
    return KEPT_AFTER_FAILURE_SECONDS if ended else KEPT_FOR_RESUMPTION_SECONDS


def _last_used(folder: Path) -> float:
    """Return when anything in a folder was last written, in seconds since 1970."""
    newest = folder.stat().st_mtime
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            newest = max(newest, path.lstat().st_mtime)
    return newest
