"""The home folder of an embedded HMI: its layout, its secrets, and the lock against a second process."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from hmi_api.settings import read_trimmed
from hmi_cli.errors import CliError

ADMIN_KEY_PREFIX = "hmi_admin_"


class HomeFolder:
    """All state of an embedded HMI; without the folder it starts empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / "catalog.db"
        """The catalog's SQLite file."""
        self.artifacts = path / "artifacts"
        """The artifact store."""
        self.resources = path / "resources"
        """Applied resources and their status."""
        self.runs = path / "runs"
        """Work folders, checkpoints and logs of training runs."""
        self.usage = path / "usage"
        """The spool of usage events."""
        self.cache = path / "cache"
        """The runtime's local copies of artifacts."""
        self.logs = path / "logs"
        """Logs of the processes."""
        self.lock = path / "lock"
        """Locked by the process that uses the folder; contains its id."""

    def create(self) -> None:
        """Create the folders that are missing, accessible to this user only."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.artifacts, self.resources, self.runs, self.usage, self.cache, self.logs):
            folder.mkdir(exist_ok=True)
        (self.path / "secrets").mkdir(exist_ok=True, mode=0o700)

    def internal_token(self) -> str:
        """Return the token between HMI's own processes, created at first use."""
        return self._secret("internal-token", "hmi_internal_")

    def admin_key(self) -> str:
        """Return the administrator's key, created at first use."""
        return self._secret("admin-key", ADMIN_KEY_PREFIX)

    def read_admin_key(self) -> str | None:
        """Return the administrator's key; None if there is none."""
        return _read(self.path / "secrets" / "admin-key")

    def read_tenant_key(self, tenant: str) -> str | None:
        """Return the saved API key of a tenant; None if there is none."""
        return _read(self.tenant_key_file(tenant))

    def save_tenant_key(self, tenant: str, key: str) -> None:
        """Save a tenant's API key for later commands."""
        self.tenant_key_file(tenant).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_secret(self.tenant_key_file(tenant), key)

    def tenant_key_file(self, tenant: str) -> Path:
        """Return the file of a tenant's saved API key."""
        return self.path / "secrets" / f"tenant-{quote(tenant, safe='@:[]')}"

    def write_url(self, url: str) -> None:
        """Save the server's address, for commands on the same folder."""
        (self.path / "url").write_text(url + "\n")

    def read_url(self) -> str | None:
        """Return the last address of the folder's server; None if there is none."""
        return _read(self.path / "url")

    def _secret(self, name: str, prefix: str) -> str:
        file = self.path / "secrets" / name
        found = _read(file)
        if found:
            return found
        value = prefix + secrets.token_urlsafe(32)
        _write_secret(file, value)
        return value

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder. Raise ``CliError``, with the other process's id, if it is taken.

        The kernel releases the lock when the process ends, even if it is killed.
        """
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                owner = handle.read().strip() or "unknown"
                raise CliError(
                    f"{self.path} is in use by another `hmi up` (process {owner})",
                    hint=f"stop it with `kill {owner}`, or give this one its own folder with --home",
                ) from error
            handle.truncate(0)
            handle.write(f"{os.getpid()}\n")
            handle.flush()
            yield


def _write_secret(file: Path, value: str) -> None:
    # Written to another file and renamed: a kill in between leaves no empty secret.
    temporary = file.with_name(f"{file.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(value + "\n")
    temporary.replace(file)


def _read(file: Path) -> str | None:
    try:
        return read_trimmed(file) or None
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CliError(f"{file}: {error}", hint="remove it, or write the value again") from error
    except PermissionError as error:
        raise CliError(f"{file} belongs to another user", hint="run as the user who ran `hmi up`") from error
