"""What every command knows: which server to ask, and with whose key."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from hmi_cli.admin_api import AdminApi
from hmi_cli.client import Client
from hmi_cli.errors import CliError
from hmi_cli.resource_api import ResourceApi
from hmi_cli.system.home import Home

KEPT_KEY_NAME = "hmi command"
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
        return self.named_server or self.home.read_url() or DEFAULT_SERVER

    def admin(self) -> Client:
        """Return a client that may administer; the key is the one given, else the home folder's."""
        key = self.named_admin_key or self.home.read_admin_key()
        if key is None:
            raise CliError(
                f"no admin key: {self.home.path} holds none",
                hint="run `hmi up` first, name its folder with --home, or set HMI_ADMIN_KEY",
            )
        return Client(self.server, key)

    @contextmanager
    def resources(self) -> Iterator[ResourceApi]:
        """Give the resource API of the server."""
        with self.admin() as client:
            yield ResourceApi(client)

    def with_key(self, key: str) -> Client:
        """Return a client that asks as the tenant whose key this is."""
        return Client(self.server, key)

    def as_tenant(self, tenant: str) -> Client:
        """Return a client that asks as a tenant, with a key that is made at first use and kept at home."""
        key = self.home.read_tenant_key(tenant)
        if key is None:
            with self.admin() as client:
                key = str(AdminApi(client).create_key(tenant, KEPT_KEY_NAME)["key"])
            self.home.keep_tenant_key(tenant, key)
        return Client(self.server, key)


def session_of(context: typer.Context) -> Session:
    """Return the session that the callback of the command line made."""
    session = context.obj
    if not isinstance(session, Session):
        raise CliError("the command was started without its global options")
    return session


def open_session(home: Path, server: str | None, admin_key: str | None) -> Session:
    """Resolve the global options."""
    return Session(Home(home), server, admin_key)
