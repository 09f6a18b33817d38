"""What commands share: the server and the key that they use, how the user called them, and options."""

import math
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

import typer

from hmi_api.settings import trimmed
from hmi_cli.api import AdminApi, ResourceApi
from hmi_cli.client import Client, address_of
from hmi_cli.errors import CliError, UsageError
from hmi_cli.render.output import Output
from hmi_cli.system.home import HomeFolder

SAVED_KEY_NAME = "hmi command"
OptionT = TypeVar("OptionT", str, Path, None)
DEFAULT_SERVER = "http://127.0.0.1:8080"


@dataclass(frozen=True)
class CommandContext:
    """The global options, resolved."""

    home: HomeFolder
    named_server: str | None
    named_admin_key: str | None

    @property
    def server(self) -> str:
        """The server given as an option, else the one of the home folder, else the default."""
        return address_of(self.named_server or self.home.read_url() or DEFAULT_SERVER)

    def admin(self) -> Client:
        """Return a client with the administrator's key: the one given, else the home folder's."""
        key = self.named_admin_key or self.home.read_admin_key()
        if key is None:
            raise CliError(
                f"no admin key in {self.home.path}",
                hint="run `hmi up` first, name its folder with --home, or set HMI_ADMIN_KEY",
            )
        return self.client(key)

    @contextmanager
    def resources(self) -> Iterator[ResourceApi]:
        """Open the resource API of the server."""
        with self.admin() as client:
            yield ResourceApi(client)

    def as_tenant(self, tenant: str) -> Client:
        """Return a client with a key of a tenant that is created at first use and saved in the home folder.

        A saved key that the server refuses, because it was revoked or the server is a new one, is replaced.
        """
        key = self.home.read_tenant_key(self._key_name(tenant)) or self._create_key(tenant)
        return self.client(key, renew=lambda: self._replace_key(tenant))

    def client(self, key: str, renew: Callable[[], str] | None = None) -> Client:
        """Return a client with an API key; ``renew`` returns another if the server refuses it."""
        own = self.server == self.home.read_url()
        return Client(self.server, key, renew=renew, on_this_machine=own)

    def _create_key(self, tenant: str) -> str:
        with self.admin() as client:
            key = str(AdminApi(client).create_key(tenant, SAVED_KEY_NAME)["key"])
        self.home.save_tenant_key(self._key_name(tenant), key)
        return key

    def _replace_key(self, tenant: str) -> str:
        try:
            return self._create_key(tenant)
        except CliError as error:
            file = shlex.quote(str(self.home.tenant_key_file(self._key_name(tenant))))
            raise CliError(
                f"the server refuses the saved key of {tenant}; creating a new one failed: {error.message}",
                hint=f"remove {file}, or ask with a key of your own: --key without --tenant",
            ) from error

    def _key_name(self, tenant: str) -> str:
        """Return the name of a tenant's saved key; other servers must not see keys of the home folder's."""
        own = self.named_server is None or self.server == self.home.read_url()
        return tenant if own else f"{tenant}@{urlsplit(self.server).netloc.rpartition('@')[2]}"


def trimmed_option(value: OptionT) -> OptionT:
    """Trim an option that may come from the environment. Raise ``UsageError`` for a control character."""
    if value is None:
        return None
    try:
        return type(value)(trimmed(str(value)))
    except ValueError as error:
        raise UsageError(f"an option or its variable is wrong: {error}") from error


KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        "-k",
        envvar="HMI_API_KEY",
        help="A tenant's API key (`hmi key create TENANT`).",
        callback=trimmed_option,
    ),
]
OutputOption = Annotated[Output | None, typer.Option("--output", "-o", help="json or yaml.")]


def not_empty(tenant: str | None) -> str | None:
    """Raise ``UsageError`` for an empty name, which an unset variable leaves: it would mean all tenants."""
    if tenant == "":
        raise UsageError("the tenant's name is empty")
    return tenant


def finite(seconds: float) -> float:
    """Raise ``UsageError`` for a duration that is infinite or NaN."""
    if not math.isfinite(seconds):
        raise UsageError(f"{seconds} is not a duration")
    return seconds


def get_context(context: typer.Context) -> CommandContext:
    """Return the context that the command line's callback has put there."""
    found = context.obj
    if not isinstance(found, CommandContext):
        raise CliError("the command was started without its global options")
    return found


def called_as(home: Path | None = None) -> str:
    """Return how the user calls ``hmi``: with its path unless it is on PATH, and ``--home`` if needed."""
    name = "hmi"
    called = Path(sys.argv[0])
    if shutil.which(name) is None and called.name == name:
        name = str(called.relative_to(Path.cwd()) if called.is_relative_to(Path.cwd()) else called)
    name = shlex.quote(name)
    return name if home in (None, Path(".hmi")) else f"{name} --home {shlex.quote(str(home))}"
