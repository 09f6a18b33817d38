"""kubectl commands, and waiting for their output with a limit."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

Object = dict[str, Any]
Found = TypeVar("Found")

_POLL_SECONDS = 1.0
_COMMAND_SECONDS = 90.0


@dataclass(frozen=True)
class Kubectl:
    """Commands against the cluster that KUBECONFIG names."""

    folder: Path
    """The working directory of the commands."""

    def run(
        self, *arguments: str, stdin: str = "", check: bool = True, limit_s: float = _COMMAND_SECONDS
    ) -> "subprocess.CompletedProcess[str]":
        """Run one command to its end."""
        done = subprocess.run(
            ["kubectl", *arguments],
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done

    def text(self, *arguments: str, limit_s: float = _COMMAND_SECONDS) -> str:
        """Return what a command prints."""
        return self.run(*arguments, limit_s=limit_s).stdout

    def json(self, *arguments: str) -> Any:
        """Return what a command prints with ``-o json``."""
        return json.loads(self.text(*arguments, "-o", "json"))

    def items(self, *arguments: str) -> list[Object]:
        """Return the objects of a ``get``."""
        items: list[Object] = self.json("get", *arguments)["items"]
        return items

    def find(self, *arguments: str) -> Object | None:
        """Return one object of a ``get``; None when there is none."""
        text = self.text("get", *arguments, "--ignore-not-found", "-o", "json")
        found: Object | None = json.loads(text) if text.strip() else None
        return found

    def apply(self, *objects: Object) -> None:
        """Apply objects."""
        self.run("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def refusal(self, *objects: Object, dry_run: bool) -> str:
        """Return the message with which objects are refused; fail if they are accepted."""
        flags = ["--dry-run=server"] if dry_run else []
        done = self.run("apply", *flags, "-f", "-", stdin=yaml.safe_dump_all(objects), check=False)
        assert done.returncode != 0, f"nothing was refused: {done.stdout}"
        return done.stderr


def wait_for(
    find: Callable[[], Found | None], limit_s: float, what: str, explain: Callable[[], object] = lambda: ""
) -> Found:
    """Poll until something is found, and return it; fail after ``limit_s`` seconds with an explanation."""
    ends = time.monotonic() + limit_s
    while not (found := find()):
        assert time.monotonic() < ends, f"{what}: not within {limit_s:.0f} s. {explain()}"
        time.sleep(_POLL_SECONDS)  # between two checks of the condition
    return found


def condition(body: Object, type_: str) -> Object:
    """Return a condition of an object; empty before it is there."""
    found = [one for one in body.get("status", {}).get("conditions", []) if one["type"] == type_]
    return found[0] if found else {}


def is_true(body: Object, type_: str) -> bool:
    """Return whether a condition is True for the present generation."""
    observed = body.get("status", {}).get("observedGeneration", body["metadata"].get("generation"))
    return condition(body, type_).get("status") == "True" and observed == body["metadata"].get("generation")


def key_of(body: Object) -> str:
    """Return ``kind namespace/name``."""
    return f"{body['kind']} {body['metadata']['namespace']}/{body['metadata']['name']}"
