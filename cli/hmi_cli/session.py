"""What every command knows: which server to ask, and with whose key."""

import math
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import typer

from hmi_api.settings import trimmed
from hmi_cli.admin_api import AdminApi
from hmi_cli.client import Client, address_of
from hmi_cli.errors import CliError, usage_error
from hmi_cli.resource_api import ResourceApi
from hmi_cli.system.home import Home

KEPT_KEY_NAME = "hmi command"
OptionT = TypeVar("OptionT", str, Path, None)
DEFAULT_SERVER = "http://127.0.0.1:8080"


@dataclass(frozen=True)
class Session:
    """The global options, resolved."""

    home: Home
    named_server: str | None
    named_admin_key: str | None

    @property
    def server(self) -> str:
        """The server that was named, else the one that runs on the home folder, else the default."""
        return address_of(self.named_server or self.home.read_url() or DEFAULT_SERVER)

    def admin(self) -> Client:
        """Return a client that may administer; the key is the one given, else the home folder's."""
        key = self.named_admin_key or self.home.read_admin_key()
        if key is None:
            raise CliError(
                f"no admin key: {self.home.path} holds none",
                hint="run `hmi up` first, name its folder with --home, or set HMI_ADMIN_KEY",
            )
        return self._client(key)

    @contextmanager
    def resources(self) -> Iterator[ResourceApi]:
        """Give the resource API of the server."""
        with self.admin() as client:
            yield ResourceApi(client)

    def with_key(self, key: str) -> Client:
        """Return a client that asks as the tenant whose key this is."""
        return self._client(key)

    def as_tenant(self, tenant: str) -> Client:
        """Return a client that asks as a tenant, with a key that is made at first use and kept at home.

        A kept key that the server refuses, since it was revoked or the server began anew, is replaced.
        """
        key = self.home.read_tenant_key(self._keeper(tenant)) or self._make_key(tenant)
        return self._client(key, renew=lambda: self._replace_key(tenant))

    def _client(self, key: str, renew: Callable[[], str] | None = None) -> Client:
        own = self.server == self.home.read_url()
        return Client(self.server, key, renew=renew, on_this_machine=own)

    def _make_key(self, tenant: str) -> str:
        with self.admin() as client:
            key = str(AdminApi(client).create_key(tenant, KEPT_KEY_NAME)["key"])
        self.home.keep_tenant_key(self._keeper(tenant), key)
        return key

    def _replace_key(self, tenant: str) -> str:
        try:
            return self._make_key(tenant)
        except CliError as error:
            file = shlex.quote(str(self.home.tenant_key_file(self._keeper(tenant))))
            raise CliError(
                f"the server refuses the key kept for {tenant}, and no new one can be made: {error.message}",
                hint=f"remove {file}, or ask with a key of your own: --key without --tenant",
            ) from error

    def _keeper(self, tenant: str) -> str:
        """Return the name that a tenant's key is kept under: other servers must not be shown the home's."""
        own = self.named_server is None or self.server == self.home.read_url()
        return tenant if own else f"{tenant}@{urlsplit(self.server).netloc.rpartition('@')[2]}"


def trimmed_option(value: OptionT) -> OptionT:
    """Trim an option that may come from the environment; ``CliError`` where a control character is inside."""
    if value is None:
        return None
    try:
        return type(value)(trimmed(str(value)))
    except ValueError as error:
        raise usage_error(f"an option or its variable is wrong: {error}") from error


def not_empty(tenant: str | None) -> str | None:
    """Refuse an empty name, as an unset variable leaves it: it would mean everyone, or the key's owner."""
    if tenant == "":
        raise usage_error("the tenant's name is empty")
    return tenant


def finite(seconds: float) -> float:
    """Refuse what is no length of time."""
    if not math.isfinite(seconds):
        raise usage_error(f"{seconds} is no length of time")
    return seconds


def session_of(context: typer.Context) -> Session:
    """Return the session that the callback of the command line made."""
    session = context.obj
    if not isinstance(session, Session):
        raise CliError("the command was started without its global options")
    return session


def open_session(home: Path, server: str | None, admin_key: str | None) -> Session:
    """Resolve the global options."""
    return Session(Home(home), server, admin_key)
