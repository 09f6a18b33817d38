"""An installed PostgreSQL that does not start fails the tests that need it; they are not skipped."""

from pathlib import Path

import pytest
from postgres_server import NotStarted, running_server


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """An installation whose ``initdb`` ends with an error."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, program in (("initdb", "echo no space left >&2; exit 1"), ("postgres", "echo 15.0")):
        (folder / name).write_text(f"#!/bin/sh\n{program}\n")
        (folder / name).chmod(0o755)
    return folder


def test_an_installed_server_that_does_not_start_is_an_error(broken: Path) -> None:
    with pytest.raises(NotStarted, match="initdb failed: no space left"), running_server([broken]):
        pytest.fail("there is no server")
