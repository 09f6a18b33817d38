"""The home folder: its secrets and its lock."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hmi_cli.errors import CliError
from hmi_cli.system.home import HomeFolder

OWNER = """
import sys
from pathlib import Path
from hmi_cli.system.home import HomeFolder
with HomeFolder(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> HomeFolder:
    """A new home folder."""
    made = HomeFolder(tmp_path / "home")
    made.create()
    return made


def test_secrets_are_created_once_and_readable_by_their_owner_only(home: HomeFolder) -> None:
    token, key = home.internal_token(), home.admin_key()
    assert token != key
    assert min(len(token), len(key)) >= 32
    assert (home.internal_token(), home.admin_key(), home.read_admin_key()) == (token, key, key)
    for file in (home.path / "secrets").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700


def test_a_half_written_secret_is_replaced(home: HomeFolder) -> None:
    (home.path / "secrets" / "admin-key").write_text("")
    (home.path / "secrets" / "admin-key.new").write_text("half")
    assert len(home.admin_key()) >= 32


def test_a_folder_without_a_key_has_none(tmp_path: Path) -> None:
    assert HomeFolder(tmp_path / "nowhere").read_admin_key() is None
    assert HomeFolder(tmp_path / "nowhere").read_url() is None


def test_the_lock_names_its_owner_and_ends_with_its_process(home: HomeFolder) -> None:
    command = [sys.executable, "-c", OWNER, str(home.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"locked\n"
        with pytest.raises(CliError, match=f"process {first.pid}"), home.locked():
            pass
        first.kill()
        first.wait()
    with home.locked():
        assert home.lock.read_text().strip() == str(os.getpid())
