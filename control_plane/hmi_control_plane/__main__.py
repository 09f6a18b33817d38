"""``python -m hmi_control_plane [serve | control-plane | gateway | migrate | wait-for-schema]``.

Settings come from the environment (``HMI_...``). Exit status: 0 success, 1 timeout, 2 wrong settings.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing

from asgi_correlation_id import CorrelationIdFilter
from sqlalchemy.exc import SQLAlchemyError

from hmi_api.errors import InvalidInput
from hmi_api.security.ca_certificates import trust_ca_certificates
from hmi_api.settings import load_settings, trim_environment
from hmi_control_plane.app import create_app
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.migrate import is_behind, upgrade
from hmi_control_plane.http.server import serve
from hmi_control_plane.settings import DatabaseSettings, Part, Settings

DONE, TIMED_OUT, WRONG_SETTINGS = 0, 1, 2
_POLL_SECONDS = 1.0

_HELP = {
    Part.SERVE: "everything in one process (the default)",
    Part.CONTROL_PLANE: "internal and admin APIs, and tenants' usage, bills and invoices; no inference",
    Part.GATEWAY: "the API of tenants: inference, models, usage, bills, invoices",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; return the exit status."""
    options = _parser().parse_args(arguments)
    configure_logging()
    try:
        trim_environment(os.environ)
        if options.command == "migrate":
            return _migrate(load_settings(DatabaseSettings).database_url, options.timeout)
        if options.command == "wait-for-schema":
            return _wait_for_schema(load_settings(DatabaseSettings).database_url, options.timeout)
        return _serve(Part(options.command or Part.SERVE))
    except InvalidInput as error:
        print(error.message, file=sys.stderr)
        return WRONG_SETTINGS


def configure_logging() -> None:
    """Log to stderr, each record with the id of the request that it belongs to."""
    handler = logging.StreamHandler()
    handler.addFilter(CorrelationIdFilter(default_value="-"))
    line = "%(asctime)s %(levelname)s %(name)s [%(correlation_id)s]: %(message)s"
    logging.basicConfig(level=logging.INFO, format=line, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("asgi_correlation_id").setLevel(logging.ERROR)  # a client could fill the log


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hmi_control_plane", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    for part, text in _HELP.items():
        commands.add_parser(part.value, help=text)
    for name, text in (
        ("migrate", "upgrade the database schema and exit"),
        ("wait-for-schema", "wait until the database schema is new enough for this version"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--timeout", type=float, default=300.0, help="seconds to wait for the database")
    return parser


def _serve(part: Part) -> int:
    settings = load_settings(Settings)
    missing = settings.missing_for(part)
    if missing:
        print(f"{part} needs {' and '.join(missing)}.", file=sys.stderr)
        return WRONG_SETTINGS
    serve(create_app(settings, part), settings)
    return DONE


def _migrate(url: str, timeout: float) -> int:
    with closing(Database(url)) as database:
        if not _wait(lambda: _answers(database), timeout, "the database does not answer"):
            return TIMED_OUT
    upgrade(url)
    return DONE


def _answers(database: Database) -> bool:
    database.ping()
    return True


def _wait_for_schema(url: str, timeout: float) -> int:
    with closing(Database(url)) as database:
        done = _wait(lambda: not is_behind(database), timeout, "the database schema is not migrated yet")
        return DONE if done else TIMED_OUT


def _wait(condition: Callable[[], bool], timeout: float, otherwise: str) -> bool:
    """Poll until ``condition`` is true, despite database errors; return False after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        problem = otherwise
        try:
            if condition():
                return True
        except SQLAlchemyError as error:
            problem = f"the database does not answer: {type(error).__name__}"
        if time.monotonic() + _POLL_SECONDS > deadline:
            print(f"Gave up after {timeout:.0f} s: {problem}.", file=sys.stderr)
            return False
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    trust_ca_certificates()
    sys.exit(main())
