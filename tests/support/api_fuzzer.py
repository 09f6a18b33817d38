"""Runs schemathesis against an application on a real socket, seeded: every run sends the same requests."""

import contextlib
import copy
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

_START_SECONDS = 30.0
_RUN_SECONDS = 600.0
"""A limit on a run that hangs; on two idle cores it takes half a minute."""
LEFT_OUT = "positive_data_acceptance"
"""JSON Schema cannot say that a cursor is opaque or a period not empty: such requests are refused."""


@contextlib.contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve ``app`` on loopback while the block runs; gives its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + _START_SECONDS
    while not server.started:
        if time.monotonic() > until or not thread.is_alive():
            raise TimeoutError("the application did not start")
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(_START_SECONDS)


@dataclass
class Fuzzer:
    """Input for schemathesis: credentials and real names, which it uses in some of its requests."""

    folder: Path
    credentials: Mapping[str, str]
    """Regular expressions of paths, and the bearer token that goes with them."""
    names: Mapping[str, list[str]] = field(default_factory=dict)
    """Values of path parameters by name, some of which exist."""
    checks: str = "all"
    examples: int = 10

    def run(self, url: str, openapi: Mapping[str, Any]) -> "FuzzReport":
        """Try every operation of ``openapi`` at ``url``."""
        schema, config = self.folder / "openapi.json", self.folder / "schemathesis.toml"
        schema.write_text(json.dumps(self._with_names(openapi)))
        config.write_text(self._config())
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", str(schema)]
        command += ["--url", url, "--phases", "examples,coverage,fuzzing", "--seed", "1", "--no-color"]
        command += [
            "--max-examples",
            str(self.examples),
            "--checks",
            self.checks,
            "--exclude-checks",
            LEFT_OUT,
        ]
        command += ["--max-failures", "1000", "--warnings", "off", "--request-timeout", "20"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_RUN_SECONDS, cwd=self.folder
        )
        return FuzzReport(done.returncode, done.stdout + done.stderr)

    def _with_names(self, openapi: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return ``openapi`` whose path parameters are now and then one of ``names``."""
        made = copy.deepcopy(dict(openapi))
        for methods in made["paths"].values():
            for parameter in (
                item for operation in methods.values() for item in operation.get("parameters", [])
            ):
                names = self.names.get(parameter["name"]) if parameter["in"] == "path" else None
                if names:
                    parameter["schema"] = {"anyOf": [{"enum": names}, parameter["schema"]]}
        return made

    def _config(self) -> str:
        # 503 says that something is not ready yet: here, models that no runtime loads.
        entries = ['checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503"]']
        for path, token in self.credentials.items():
            header = json.dumps(f"Bearer {token}")
            place = f"include-path-regex = {json.dumps(path)}"
            entries.append(f"[[operations]]\n{place}\nheaders = {{ Authorization = {header} }}")
        return "\n".join(entries) + "\n"


@dataclass(frozen=True)
class FuzzReport:
    """The findings of schemathesis."""

    status: int
    text: str

    @property
    def operations(self) -> int:
        """How many operations were tried."""
        return self._number(r"Tested: (\d+)")

    @property
    def requests(self) -> int:
        """How many requests were made."""
        return self._number(r"(\d+) generated")

    def _number(self, pattern: str) -> int:
        found = re.search(pattern, self.text)
        return int(found[1]) if found else 0
