"""The system under demonstration: `hmi up` in a child process, in the demonstration's own home folder."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from hmi_cli.errors import CliError
from hmi_cli.system.home import Home
from hmi_cli.system.supervisor import tethered

START_LIMIT_S = 120.0
STOP_LIMIT_S = 40.0


@dataclass
class Running:
    """A started system."""

    home: Home
    url: str
    process: "subprocess.Popen[bytes]"

    def alive(self) -> bool:
        """Say whether it still runs."""
        return self.process.poll() is None


@contextmanager
def started(home: Home, port: int) -> Iterator[Running]:
    """Start `hmi up`, wait until it answers, and stop it in the end."""
    home.create()
    (home.path / "url").unlink(missing_ok=True)
    log = home.logs / "up.log"
    command = [sys.executable, "-m", "hmi_cli.main", "--home", str(home.path), "up", "--port", str(port)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            tethered(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield Running(home, _wait_for_url(home, process), process)
    finally:
        _stop(process)


def _wait_for_url(home: Home, process: "subprocess.Popen[bytes]") -> str:
    ends = time.monotonic() + START_LIMIT_S
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise CliError(
                f"`hmi up` ended with {process.returncode}: {_last_line(home)}",
                hint=f"its log: {home.logs}/up.log",
            )
        url = home.read_url()
        if url and _answers(url):
            return url
        time.sleep(0.1)
    raise CliError(
        f"`hmi up` did not answer within {START_LIMIT_S:.0f} s", hint=f"its log: {home.logs}/up.log"
    )


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/openapi.json", timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _last_line(home: Home) -> str:
    lines = (home.logs / "up.log").read_text(errors="replace").split("\n")
    said = [line for line in lines if line.strip()]
    return next(
        (line for line in reversed(said) if line.startswith("error:")), said[-1] if said else "no word"
    )


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
