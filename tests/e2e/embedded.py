"""HMI on one machine as a user has it: a home folder, `hmi up` as a process, and the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

START_LIMIT_S = 90.0
STOP_LIMIT_S = 45.0
POLL_S = 0.25


class Embedded:
    """Starts, calls, kills and stops one HMI with one home folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run `hmi up` and wait until it answers."""
        (self.home / "url").unlink(missing_ok=True)
        self.home.mkdir(exist_ok=True)
        with (self.home / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command("up", "--port", "0"), stdout=log, stderr=log, start_new_session=True
            )
        wait_for(self._answers, START_LIMIT_S, self.log)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        return (self.home / "url").exists() and self.hmi("get", "all", "-A", check=False).returncode == 0

    def kill(self) -> None:
        """Kill `hmi up` with SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Stop `hmi up` as a service manager would, and return its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_LIMIT_S)

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of `hmi` with these arguments and this home folder."""
        return [sys.executable, "-m", "hmi_cli.main", "--home", str(self.home), *arguments]

    def hmi(
        self, *arguments: str, check: bool = True, stdin: str | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run one `hmi` command to its end."""
        done = subprocess.run(
            self.command(*arguments),
            input=stdin,
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr
        assert not check or done.returncode == 0, f"{arguments}: {done.stderr}{done.stdout}"
        return done

    def json(self, *arguments: str) -> Any:
        """Run a command with `-o json` and return what it printed."""
        return json.loads(self.hmi(*arguments, "-o", "json").stdout)

    def condition(self, target: str, namespace: str, type_: str) -> dict[str, str]:
        """Return a condition of a resource; empty if it has none."""
        status = self.json("get", target, "-n", namespace).get("status") or {}
        found = [entry for entry in status.get("conditions", []) if entry["type"] == type_]
        return found[0] if found else {}

    def is_ready(self, target: str, namespace: str) -> bool:
        """Return whether a resource's condition Ready is True."""
        return self.condition(target, namespace, "Ready").get("status") == "True"

    def runtime_pid(self) -> int | None:
        """Return the process id of the runtime, if it runs."""
        try:
            return int((self.home / "runtime.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def log(self) -> str:
        """Return the logs, for the message of a failure."""
        files = [
            self.home / "up.log",
            *sorted(self.home.glob("logs/*.log")),
            *sorted(self.home.glob("runs/**/run.log")),
        ]
        return "\n".join(
            f"--- {file}\n{file.read_text(errors='replace')[-2000:]}" for file in files if file.exists()
        )


def wait_for(condition: Callable[[], bool], limit_s: float, explain: Callable[[], str]) -> None:
    """Wait until a condition holds; fail with an explanation when it does not within the limit."""
    ends = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < ends, f"not within {limit_s:.0f} s\n{explain()}"
        time.sleep(POLL_S)


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
