"""The home folder of an embedded HMI: its layout, its secrets and the lock that gives it one owner."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from hmi_api.settings import read_trimmed
from hmi_cli.errors import CliError

ADMIN_KEY_PREFIX = "hmi_admin_"


@dataclass(frozen=True)
class Home:
    """Where an embedded HMI keeps everything; deleting the folder is starting anew."""

    path: Path

    @property
    def database(self) -> Path:
        """The catalog's SQLite file."""
        return self.path / "catalog.db"

    @property
    def artifacts(self) -> Path:
        """The artifact store."""
        return self.path / "artifacts"

    @property
    def resources(self) -> Path:
        """Applied resources and their status."""
        return self.path / "resources"

    @property
    def runs(self) -> Path:
        """Work folders, checkpoints and logs of training runs."""
        return self.path / "runs"

    @property
    def usage(self) -> Path:
        """The durable usage spool."""
        return self.path / "usage"

    @property
    def cache(self) -> Path:
        """The runtime's local disk copies."""
        return self.path / "cache"

    @property
    def logs(self) -> Path:
        """Logs of the processes."""
        return self.path / "logs"

    @property
    def lock(self) -> Path:
        """Locked by the owner while it lives; holds its process id."""
        return self.path / "lock"

    def create(self) -> None:
        """Make the folders that are missing; only this user may enter."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.artifacts, self.resources, self.runs, self.usage, self.cache, self.logs):
            folder.mkdir(exist_ok=True)
        (self.path / "secrets").mkdir(exist_ok=True, mode=0o700)

    def internal_token(self) -> str:
        """Return the token that HMI's own processes show one another, made at first use."""
        return self._secret("internal-token", "hmi_internal_")

    def admin_key(self) -> str:
        """Return the administrator's key, made at first use."""
        return self._secret("admin-key", ADMIN_KEY_PREFIX)

    def read_admin_key(self) -> str | None:
        """Return the administrator's key if there is one."""
        return _read(self.path / "secrets" / "admin-key")

    def read_tenant_key(self, tenant: str) -> str | None:
        """Return the API key that this command keeps for a tenant, if there is one."""
        return _read(self.tenant_key_file(tenant))

    def keep_tenant_key(self, tenant: str, key: str) -> None:
        """Keep a tenant's API key, for this user's later commands."""
        self.tenant_key_file(tenant).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_secret(self.tenant_key_file(tenant), key)

    def tenant_key_file(self, tenant: str) -> Path:
        """Where the API key that this command keeps for a tenant is, if there is one."""
        return self.path / "secrets" / f"tenant-{quote(tenant, safe='@:[]')}"

    def write_url(self, url: str) -> None:
        """Leave word of where the server listens, for commands that share the folder."""
        (self.path / "url").write_text(url + "\n")

    def read_url(self) -> str | None:
        """Return where the server of this folder listened last."""
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
    def owned(self) -> Iterator[None]:
        """Hold the folder's lock; ``CliError`` naming the owner where another process holds it.

        The kernel drops the lock with the process, so a killed owner never leaves the folder locked.
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
    # Made aside and moved: a kill in between leaves no empty secret that a later start would trust.
    aside = file.with_name(f"{file.name}.new")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(value + "\n")
    aside.replace(file)


def _read(file: Path) -> str | None:
    try:
        return read_trimmed(file) or None
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CliError(f"{file}: {error}", hint="remove it, or put the value there once more") from error
    except PermissionError as error:
        raise CliError(f"{file} belongs to another user", hint="run as the user who ran `hmi up`") from error
