"""Errors as users see them: one short line, and a hint on what to do."""

import contextlib

from rich.console import Console
from rich.text import Text

EXIT_FAILED = 1
"""The server refused, or something failed."""

EXIT_USAGE = 2
"""The command line or a manifest is invalid."""


class CliError(Exception):
    """Ends the command with a message and a hint on standard error, never with a traceback."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


class ApiError(CliError):
    """The server answered with an error; ``status`` is the HTTP status."""

    def __init__(self, message: str, status: int, *, hint: str = "") -> None:
        super().__init__(f"{message} (HTTP {status})", hint=hint)
        self.status = status


class UsageError(CliError):
    """The command line or a manifest is invalid, whatever the server would say."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint, exit_code=EXIT_USAGE)


def print_error(error: CliError, about: str = "") -> None:
    """Print an error and its hint on standard error; ``about`` names the object that it concerns."""
    message = f"{about}: {error.message}" if about else error.message
    _print("error: ", "red", message)
    if error.hint:
        _print("hint: ", "dim", error.hint)


def print_warning(message: str) -> None:
    """Print a warning on standard error."""
    _print("warning: ", "yellow", message)


def _print(begins: str, style: str, message: str) -> None:
    message = message.encode(errors="backslashreplace").decode()  # may contain bytes that are not UTF-8
    # If standard error is closed, the exit code still says that the command failed.
    with contextlib.suppress(OSError):
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(Text(begins, style=style), Text(message), sep="")
